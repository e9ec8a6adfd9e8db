//! What becomes of objects: made, written, crashed, found again, removed.

use udirect::block::{Durability, ErrorKind};
use udirect::extent::{StoreError, check};

use crate::bed::{Bed, PATIENCE, formatted};

#[test]
fn what_is_durable_is_there_after_a_crash() {
    let device = formatted("mem:16MiB");
    let mut bed = Bed::open(&device);
    let file = bed.store.create(Some("a")).unwrap();
    bed.write(file, 8192, &[7; 8192], Durability::Full);
    bed.write(file, 0, &[1; 4096], Durability::Lazy);
    let other = bed.store.create(Some("b")).unwrap();
    bed.store.set_attribute(other, "key", b"value").unwrap();
    let mark = bed.store.sync_all().unwrap();
    bed.store.wait(mark, PATIENCE).unwrap();
    drop(bed);

    let mut bed = Bed::open(&device);
    assert_eq!(bed.store.lookup("a").unwrap(), file);
    assert_eq!(bed.store.info().epoch, 3);
    let expected = [[1; 4096], [0; 4096], [7; 4096], [7; 4096]].concat();
    assert_eq!(bed.read(file, 0, 20_480), expected);
    assert_eq!(bed.store.attribute(other, "key").unwrap().unwrap(), b"value");
    bed.store.checkpoint(PATIENCE).unwrap();
    bed.store.remove(file).unwrap();
    let gone = bed.store.stat(file).unwrap_err();
    assert!(matches!(gone, StoreError::NoObject(_)));
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let mark = bed.store.sync_all().unwrap();
    bed.store.wait(mark, PATIENCE).unwrap();
    let statistics = bed.store.statistics();
    assert_eq!(statistics.free.free_units, statistics.units);
    drop(bed);
    let report = check(&device, PATIENCE).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.objects, report.used), (1, 0));
}
