//! The test bed: a device, a store on it, and a pipeline over both.

use std::sync::Arc;
use std::time::Duration;

use udirect::block::{BlockDevice, Durability};
use udirect::dio::{Done, Io, Memory, Options, Pipeline};
use udirect::dma::Access;
use udirect::extent::{FormatOptions, OpenOptions, Store};
use udirect::units::FileId;

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn device(address: &str) -> Arc<dyn BlockDevice> {
    udirect::open::open(address).expect("an address").device
}

pub(crate) fn formatted(address: &str) -> Arc<dyn BlockDevice> {
    let device = device(address);
    Store::format(&device, &FormatOptions::default()).expect("a store");
    device
}

pub(crate) struct Bed {
    pub(crate) store: Store,
    pub(crate) pipeline: Pipeline<Store>,
}

impl Bed {
    pub(crate) fn open(device: &Arc<dyn BlockDevice>) -> Self {
        let store = Store::open(device, &OpenOptions::default()).expect("a store");
        let pipeline =
            Pipeline::open(&**device, store.clone(), &Options::default()).expect("a pipeline");
        Self { store, pipeline }
    }

    pub(crate) fn run(&mut self, io: Io) -> Done {
        self.pipeline.submit(io).expect("it is taken");
        self.pipeline.ring();
        let mut found = None;
        while found.is_none() {
            self.pipeline.poll(1, &mut |done| found = Some(done));
        }
        found.expect("it was awaited")
    }

    pub(crate) fn write(
        &mut self,
        file: FileId,
        offset: u64,
        bytes: &[u8],
        durability: Durability,
    ) {
        let dma = self.store.device().dma();
        let mut buffer = dma.buffer(bytes.len(), Access::Both).expect("memory");
        buffer.copy_from_slice(bytes);
        let done = self.run(Io::write(offset, buffer, 1).of(file).with(durability));
        assert_eq!(done.into_bytes().expect("a write"), bytes.len() as u64);
    }

    pub(crate) fn read(&mut self, file: FileId, offset: u64, len: usize) -> Vec<u8> {
        let buffer = self.store.device().dma().buffer(len, Access::Both).expect("memory");
        let done = self.run(Io::read(offset, buffer, 1).of(file));
        done.result.as_ref().expect("a read");
        let Memory::One(buffer) = done.memory else { panic!("one buffer") };
        buffer[..done.bytes as usize].to_vec()
    }
}
