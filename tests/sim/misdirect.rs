//! Misdirected metadata: a read that brings another block, a write that lands on another one.
//!
//! What is held: the store says so when it is opened or the check when it looks; or what is found is right all the same,
//! because the block was not needed, or was written again.

use std::sync::Arc;

use udirect::extent::{Store, check};
use udirect::seed::Seed;
use udirect::soft::{Disk, FaultAction, FaultRule, Faults};
use udirect::spec::command::NvmOpcode;
use udirect::units::Lba;

use crate::world::config::{Config, Op};
use crate::world::formatted;
use crate::world::image::{Drive, Examiner, PATIENCE, dump, open_options};
use crate::world::life::Life;
use crate::world::model::{Found, Model};

/// Reads, and as many writes, that go astray.
const EACH: u64 = 5000;

/// Cases on one store.
const ON_ONE: u64 = 50;

/// Commands among which one goes astray.
const READS: u64 = 8;
const WRITES: u64 = 12;

fn config(seed: u64) -> Config {
    let config = Config::swarm(seed);
    let drive = Drive { cache: true, ..config.drive };
    let weights = config.weights;
    let config = Config { drive, handles: 1, data_faults: 0, metadata_fault: None, ..config };
    Config { weights, journal: 24 << config.lba.shift(), images: 0, ..config }
        .with(Op::SyncAll, 8)
        .with(Op::Checkpoint, 2)
}

/// How a case has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The command did not come.
    NotFired,
    /// The store, or the check, has said so.
    Detected,
    /// What was found is right.
    Right,
}

/// A store that has a history, and what is on it.
struct Base {
    config: Config,
    disk: Arc<Disk>,
    found: Found,
    examiner: Examiner,
    tag: u64,
}

impl Base {
    fn new(seed: u64) -> Result<Self, String> {
        let config = config(seed);
        let examiner = Examiner::new(seed, config.drive);
        let disk = formatted(&config, &examiner);
        let model = Model::new(config.sizes());
        let mut life = Life::open(&config, disk, model, examiner, Seed::from_u64(seed), 0)?;
        // Until the journal has gone round: blocks that were never written say nothing, wherever they are read from.
        while life.store.statistics().counts.blocks <= 48 {
            life.step()?;
        }
        life.settle()?;
        let disk = life.disk.fork();
        let (found, examiner, tag) = life.end(&disk)?;
        Ok(Self { config, disk, found, examiner, tag })
    }

    fn rule(&self, opcode: NvmOpcode, seed: &mut Seed, among: u64) -> FaultRule {
        let mut metadata = self.config.metadata_blocks();
        // Not behind the metadata, though the longest write is a whole checkpoint: data has no checksums, and nobody would notice.
        let longest = self.config.checkpoint >> self.config.lba.shift();
        let last = Lba(metadata.end.0 - longest);
        // Somewhere, or close by: neighbours are of the same kind.
        let action = if seed.bool() {
            FaultAction::MisdirectTo(Lba(seed.below(last.0)))
        } else {
            let by = [-4, -2, -1, 1, 2, 4][seed.below(6) as usize];
            if by > 0 {
                metadata.end = last;
            }
            FaultAction::MisdirectBy(by)
        };
        FaultRule::new(action).opcode(opcode).blocks(metadata).nth(1 + seed.below(among))
    }

    fn read(&self, seed: &mut Seed) -> Result<End, String> {
        let faults = Faults::new(seed.u64(..));
        let id = faults.add(self.rule(NvmOpcode::READ, seed, READS));
        let disk = self.disk.fork();
        let interposer = Arc::clone(&faults) as _;
        let device = self.examiner.bench.device(&disk, self.config.drive, Some(interposer));
        let opened = Store::open(&device, &open_options(1));
        match opened {
            _ if faults.fired(id) == 0 => Ok(End::NotFired),
            Err(_) => Ok(End::Detected),
            Ok(store) => match dump(&store, &disk, self.config.sizes())?.difference(&self.found) {
                None => Ok(End::Right),
                Some(what) => Err(format!("a misdirected read was believed: {what}")),
            },
        }
    }

    fn write(&self, seed: &mut Seed) -> Result<End, String> {
        let model = Model::of(self.config.sizes(), &self.found);
        let examiner = self.examiner.again();
        let (one, disk) = (Seed::from_u64(seed.u64(..)), self.disk.fork());
        let mut life = Life::open(&self.config, disk, model, examiner, one, self.tag)?;
        let id = life.hook.faults.add(self.rule(NvmOpcode::WRITE, seed, WRITES));
        for _ in 0..60 {
            life.step()?;
        }
        life.settle()?;
        if life.hook.faults.fired(id) == 0 {
            return Ok(End::NotFired);
        }
        // Nothing can know of the last record of all, if something that was in flight beside it is written over the place
        // where it went. One that others follow is missed.
        life.hook.faults.clear();
        let records = life.store.statistics().counts.records;
        while life.store.statistics().counts.records == records {
            life.step()?;
            life.settle()?;
        }
        let image = life.disk.fork();
        let device = self.examiner.bench.device(&image.fork(), self.config.drive, None);
        let report = check(&device, PATIENCE).map_err(|error| error.to_string())?;
        if !report.is_sound() {
            return Ok(End::Detected);
        }
        let found = life.end(&image).map_err(|what| format!("the check is content, and {what}"));
        found.map(|_| End::Right)
    }
}

fn run(purpose: &str, case: fn(&Base, &mut Seed) -> Result<End, String>) {
    let mut seed = Seed::from_env(purpose);
    let (mut detected, mut right) = (0, 0);
    while detected + right < EACH {
        let one = seed.u64(..);
        let base = Base::new(one).unwrap_or_else(|what| panic!("seed {one}: {what}"));
        for nth in 0..ON_ONE {
            let two = one.wrapping_add(nth);
            match case(&base, &mut Seed::from_u64(two)) {
                Ok(End::NotFired) => {}
                Ok(End::Detected) => detected += 1,
                Ok(End::Right) => right += 1,
                Err(what) => panic!("store {one}, case {two}: {what}"),
            }
        }
    }
    eprintln!("{purpose}: {detected} detected, {right} right all the same");
    assert!(detected > 0 && right > 0, "both kinds of cases were met");
}

#[test]
fn a_misdirected_metadata_read_is_detected_or_harmless() {
    run("misdirected reads", Base::read);
}

#[test]
fn a_misdirected_metadata_write_is_detected_or_harmless() {
    run("misdirected writes", Base::write);
}
