//! A failed flush: nothing is durable any more until the store is reopened, whoever asks and how often.

use udirect::block::{Durability, ErrorKind};
use udirect::dio::{Action, Io, Refused};
use udirect::dma::Access;
use udirect::seed::Seed;
use udirect::soft::{FaultAction, FaultRule};
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::FileId;

use crate::world::config::{Config, Op};
use crate::world::formatted;
use crate::world::image::{Drive, Examiner};
use crate::world::life::Life;
use crate::world::model::Model;
use crate::world::watch::enter;

/// Stores that are poisoned.
const STORES: u64 = 1000;

/// Times that each handle asks again.
const AGAIN: usize = 3;

fn config(seed: u64) -> Config {
    let config = Config::swarm(seed);
    let drive = Drive { cache: true, ..config.drive };
    Config { drive, handles: 3, data_faults: 0, metadata_fault: None, ..config }
}

/// Runs a request that is to fail; returns how it does.
fn refusal(life: &mut Life, handle: usize, io: Io) -> Option<ErrorKind> {
    match life.handles[handle].submit(io) {
        Ok(()) => {}
        Err(Refused::Invalid(_, error)) => return Some(error.kind()),
        Err(Refused::Full(_)) => panic!("nothing is under way"),
    }
    life.handles[handle].ring();
    let mut answer = None;
    while answer.is_none() {
        life.handles[handle].poll(1, &mut |done| answer = Some(done.result));
    }
    answer.and_then(Result::err).map(|error| error.kind())
}

/// Asks for durability in every way there is.
fn ask_in_vain(life: &mut Life, object: u64) {
    let block = life.config.sizes().block;
    for handle in 0..life.handles.len() {
        let flush = Io::bare(0, Action::Flush, 1).of(FileId(object));
        assert_eq!(refusal(life, handle, flush), Some(ErrorKind::Poisoned));
        for durability in [Durability::Data, Durability::Full] {
            let buffer = life.store.device().dma().buffer(block as usize, Access::Both);
            let io = Io::write(0, buffer.expect("memory"), 1).of(FileId(object)).with(durability);
            assert_eq!(refusal(life, handle, io), Some(ErrorKind::Poisoned));
        }
    }
    assert_eq!(life.store.sync_all().expect_err("poisoned").kind(), ErrorKind::Poisoned);
    assert_eq!(life.store.create(None).expect_err("poisoned").kind(), ErrorKind::Poisoned);
    assert_eq!(
        life.store.remove(FileId(object)).expect_err("poisoned").kind(),
        ErrorKind::Poisoned
    );
}

fn poison_one(seed: u64) -> Result<(), String> {
    let config = config(seed);
    let mut examiner = Examiner::new(seed, config.drive);
    let disk = formatted(&config, &examiner);
    let model = Model::new(config.sizes());
    let mut life = Life::open(&config, disk, model, examiner, Seed::from_u64(seed), 0)?;
    life.perform(Op::Create, 0)?;
    while enter(&life.model).live().values().all(|object| object.size == 0) {
        life.perform(Op::Write, 0)?;
        life.drain()?;
    }
    let failure = FaultRule::new(FaultAction::Fail(Status::WRITE_FAULT));
    let failure = if life.seed.bool() {
        failure.opcode(NvmOpcode::FLUSH)
    } else {
        failure.opcode(NvmOpcode::WRITE).blocks(config.journal_blocks())
    };
    let id = life.hook.faults.add(failure.once());
    life.settle()?;
    assert_eq!(life.hook.faults.fired(id), 1, "the sync has flushed and written");
    assert!(life.store.poisoned().is_some());
    let object = *enter(&life.model).live().keys().next().expect("one was made");
    for _ in 0..AGAIN {
        ask_in_vain(&mut life, object);
    }
    // What was answered before is there, and the store that is reopened syncs again.
    let image = life.disk.crash(&mut Seed::from_u64(seed));
    let (found, tag);
    (found, examiner, tag) = life.end(&image)?;
    let model = Model::of(config.sizes(), &found);
    let mut life = Life::open(&config, image, model, examiner, Seed::from_u64(seed), tag)?;
    life.perform(Op::Create, 0)?;
    life.settle()?;
    assert_eq!(life.store.poisoned(), None);
    let image = life.disk.crash(&mut Seed::from_u64(seed));
    life.end(&image).map(drop)
}

#[test]
fn after_a_failed_flush_no_sync_succeeds_before_the_store_is_reopened() {
    let mut seed = Seed::from_env("poisoned stores");
    for _ in 0..STORES {
        let one = seed.u64(..);
        poison_one(one).unwrap_or_else(|what| panic!("seed {one}: {what}"));
    }
}
