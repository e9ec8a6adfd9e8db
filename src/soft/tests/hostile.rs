//! A host out of its mind: whatever it writes, the controller answers, refuses or fails, and never panics.
#![forbid(unsafe_code)]

use super::host::{CC, CC_ENABLE, Host, Queue, Sqe, small};
use crate::dma::Window;
use crate::seed::Seed;
use crate::soft::{MediaOptions, NamespaceOptions, Options};
use crate::units::LbaSize;

/// A number that is likely to hit an edge: small, large, near an address, or anything.
fn number(seed: &mut Seed, memory: &Window) -> u64 {
    let near = memory.iova().0 + seed.below(8) * 4096;
    match seed.below(6) {
        0 => 0,
        1 => seed.below(20),
        2 => near,
        3 => near.wrapping_add(seed.below(4200)),
        4 => u64::MAX - seed.below(9000),
        _ => seed.u64(..),
    }
}

fn command(seed: &mut Seed, memory: &Window, opcodes: &[u8]) -> Sqe {
    let opcode = opcodes[seed.below(opcodes.len() as u64) as usize];
    let flags = if seed.chance(1, 3) { [0x40, 0x80, 1, 0xff][seed.below(4) as usize] } else { 0 };
    let nsid = if seed.chance(9, 10) { 1 } else { number(seed, memory) as u32 };
    let mut word = || if seed.chance(1, 2) { 0 } else { number(seed, memory) };
    let dptr = [word(), word()];
    let mptr = if word() < 1 << 60 { 0 } else { word() };
    let cdw = core::array::from_fn(|_| word() as u32);
    Sqe { opcode, flags, nsid, mptr, dptr, cdw }
}

/// Runs commands whose fate is nobody's business, and empties the completion queue.
fn storm(queue: &mut Queue, seed: &mut Seed, memory: &Window, opcodes: &[u8], rounds: u32) {
    for _ in 0..rounds {
        // What the last command wrote, or anything else, is the next one's list.
        let at = seed.below(4096) as usize * 8;
        let word = number(seed, memory) & !7;
        memory.span().store64(at, word, core::sync::atomic::Ordering::Relaxed);
        queue.push(command(seed, memory, opcodes));
        queue.ring();
        while queue.poll().is_some() {}
    }
}

fn comes_back(host: &Host) {
    host.transport.write32(CC, 0);
    let mut admin = host.enable();
    assert_eq!(host.queue(&mut admin, 1, 16).run(Sqe::new(0, 1)).status, 0);
}

#[test]
fn random_io_commands_never_panic() {
    let mut seed = Seed::from_env("random_io_commands_never_panic");
    let place = tempfile::tempdir().unwrap();
    let file = MediaOptions::File { path: place.path().join("disk"), bytes: Some(1 << 16) };
    for media in [MediaOptions::Ram { bytes: 1 << 16 }, MediaOptions::Null { bytes: 1 << 62 }, file]
    {
        let namespaces = vec![NamespaceOptions {
            lba_size: LbaSize::B512,
            media,
            ..NamespaceOptions::default()
        }];
        let (host, _admin, mut queue) = Host::with_queue(Options { namespaces, ..small() });
        let memory = host.memory(8 * 4096);
        let opcodes = [0, 1, 2, 2, 4, 5, 8, 9, 12, 0x19, 0xff];
        storm(&mut queue, &mut seed, &memory, &opcodes, 3000);
        let counters = host.controller.counters();
        assert_eq!(counters.io_total(), 3000);
        assert!(counters.failed > 0 && counters.failed < 3000);
        comes_back(&host);
    }
}

#[test]
fn random_admin_commands_never_panic() {
    let mut seed = Seed::from_env("random_admin_commands_never_panic");
    let options = Options { shadow_doorbells: true, max_queues: 8, ..small() };
    let (host, mut admin) = Host::up(options);
    let memory = host.memory(8 * 4096);
    let opcodes = [0, 1, 1, 2, 4, 5, 5, 6, 8, 9, 10, 12, 0x18, 0x7c, 0x80, 0xc0];
    storm(&mut admin, &mut seed, &memory, &opcodes, 5000);
    assert!(host.controller.counters().failed > 0);
    comes_back(&host);
}

#[test]
fn random_registers_and_doorbells_never_panic() {
    let mut seed = Seed::from_env("random_registers_and_doorbells_never_panic");
    let host = Host::disabled(Options { max_queues: 4, ..small() });
    let memory = host.memory(8 * 4096);
    for _ in 0..5000 {
        let (at, value) = (seed.below(0x20) as u32 * 4, number(&mut seed, &memory));
        match seed.below(6) {
            0 => host.transport.write32(CC, CC_ENABLE),
            1 => host.transport.write64(at, value),
            2 => _ = host.transport.read64(value as u32),
            3 => {
                let offset = 0x1000 + seed.below(10) as u32 * 64;
                host.transport.doorbell(offset).unwrap().ring(value as u32);
            }
            4 => _ = host.controller.step(),
            _ => host.transport.write32(at, value as u32),
        }
    }
    comes_back(&host);
}
