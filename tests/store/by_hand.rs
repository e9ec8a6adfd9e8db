//! The format by hand: a reader and a sealer of blocks that know `docs/on-disk-format.md` and none of the sources.
//!
//! [`read`] follows the page's "How to open", step by step, with maps of single units, so that two readings of the
//! same bytes are compared; [`reseal`] and [`append`] make what the store itself never writes. It is a reader of
//! whole stores: it does not tell damage from an end, and stops where something does not fit.

use std::collections::BTreeMap;

use udirect::extent::Store;
use udirect::soft::Disk;
use udirect::units::Lba;

/// Bytes of the header of a sealed block.
pub(crate) const HEADER: usize = 64;

/// Fields of the header: first byte, bytes.
pub(crate) const CHECKSUM: (usize, usize) = (4, 4);
pub(crate) const STORE: (usize, usize) = (8, 16);
pub(crate) const PLACE: (usize, usize) = (24, 8);
pub(crate) const EPOCH: (usize, usize) = (32, 8);
pub(crate) const SEQUENCE: (usize, usize) = (40, 8);
pub(crate) const INDEX: (usize, usize) = (48, 4);
pub(crate) const COUNT: (usize, usize) = (52, 4);
pub(crate) const LENGTH: (usize, usize) = (56, 4);
pub(crate) const WHOLE: (usize, usize) = (60, 4);

/// Fields of a superblock, from the first byte of the block.
pub(crate) const FORMAT: (usize, usize) = (HEADER, 4);
pub(crate) const COMPATIBLE: (usize, usize) = (HEADER + 8, 8);
pub(crate) const READ_ONLY: (usize, usize) = (HEADER + 16, 8);
pub(crate) const INCOMPATIBLE: (usize, usize) = (HEADER + 24, 8);
pub(crate) const CHECKPOINT_CRC: (usize, usize) = (HEADER + 120, 8);

/// Returns a number of at most eight bytes.
pub(crate) fn get(block: &[u8], (at, len): (usize, usize)) -> u64 {
    let mut bytes = [0; 8];
    bytes[..len].copy_from_slice(&block[at..at + len]);
    u64::from_le_bytes(bytes)
}

/// Sets a number of at most eight bytes.
pub(crate) fn set(block: &mut [u8], (at, len): (usize, usize), value: u64) {
    block[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}

// Blocks of a disk.

pub(crate) fn block(disk: &Disk, lba: u64) -> Vec<u8> {
    let mut bytes = vec![0; disk.lba_size().bytes() as usize];
    disk.read_now(Lba(lba), &mut bytes);
    bytes
}

/// Changes a block and leaves its checksum as it was.
pub(crate) fn spoil(disk: &Disk, lba: u64, change: impl FnOnce(&mut [u8])) {
    let mut bytes = block(disk, lba);
    change(&mut bytes);
    disk.overwrite(Lba(lba), &bytes);
}

/// Changes a sealed block so that its checksum fits again.
pub(crate) fn reseal(disk: &Disk, lba: u64, change: impl FnOnce(&mut [u8])) {
    spoil(disk, lba, |block| {
        change(block);
        seal(block);
    });
}

/// Sets the checksum of a block.
pub(crate) fn seal(block: &mut [u8]) {
    set(block, CHECKSUM, 0);
    let checksum = crc32c::crc32c(block);
    set(block, CHECKSUM, checksum.into());
}

/// Sets the checksum of a superblock's payload, and that of the block.
pub(crate) fn reseal_superblock(disk: &Disk, copy: u64, change: impl FnOnce(&mut [u8])) {
    reseal(disk, place_of_copy(disk, copy), |block| {
        change(block);
        let payload = &block[HEADER..HEADER + get(block, LENGTH) as usize];
        let whole = crc32c::crc32c(payload);
        set(block, WHOLE, whole.into());
    });
}

/// Returns where a copy of the superblock is.
pub(crate) fn place_of_copy(disk: &Disk, copy: u64) -> u64 {
    (copy << 16) >> disk.lba_size().shift()
}

fn payload(block: &[u8]) -> &[u8] {
    &block[HEADER..HEADER + get(block, LENGTH) as usize]
}

fn is_sealed(block: &[u8], magic: &[u8], place: u64) -> bool {
    let mut copy = block.to_vec();
    seal(&mut copy);
    copy == block
        && block[..4] == *magic
        && get(block, PLACE) == place
        && get(block, LENGTH) as usize <= block.len() - HEADER
        && get(block, INDEX) < get(block, COUNT)
}

/// What a superblock says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) store: Vec<u8>,
    pub(crate) version: u64,
    pub(crate) epoch: u64,
    pub(crate) block_bytes: u64,
    pub(crate) unit_bytes: u64,
    pub(crate) region: u64,
    pub(crate) features: [u64; 3],
    /// First block, and blocks.
    pub(crate) journal: [u64; 2],
    /// First block of each, and blocks of each.
    pub(crate) checkpoints: [u64; 3],
    /// First block, and units.
    pub(crate) data: [u64; 2],
    /// Sequence, blocks, bytes, CRC.
    pub(crate) checkpoint: [u64; 4],
    pub(crate) head: Head,
    pub(crate) epoch_record: u64,
}

/// A point of the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) position: u64,
    pub(crate) record: u64,
    pub(crate) lsn: u64,
    pub(crate) chain: u64,
}

/// Returns the newest superblock that is whole.
pub(crate) fn superblock(disk: &Disk) -> Superblock {
    let places = (0..4).map(|copy| place_of_copy(disk, copy));
    let whole = places.filter_map(|place| {
        let block = block(disk, place);
        is_sealed(&block, b"UDSB", place).then(|| superblock_of(&block))
    });
    whole.max_by_key(|found| found.version).expect("a superblock is whole")
}

fn superblock_of(block: &[u8]) -> Superblock {
    let word = |at: usize| get(block, (HEADER + at, 8));
    Superblock {
        store: block[8..24].to_vec(),
        version: get(block, SEQUENCE),
        epoch: get(block, EPOCH),
        block_bytes: 1 << block[HEADER + 4],
        unit_bytes: 1 << block[HEADER + 5],
        region: block[HEADER + 6].into(),
        features: [word(8), word(16), word(24)],
        journal: [word(40), word(48)],
        checkpoints: [word(56), word(64), word(72)],
        data: [word(80), word(88)],
        checkpoint: [word(96), word(104), word(112), word(120)],
        head: Head { position: word(128), record: word(136), lsn: word(144), chain: word(152) },
        epoch_record: word(160),
    }
}

impl Superblock {
    /// Returns the block of a position of the journal.
    pub(crate) fn journal_block(&self, position: u64) -> u64 {
        self.journal[0] + position % self.journal[1]
    }

    /// Returns the first block of the newest checkpoint.
    pub(crate) fn checkpoint_block(&self) -> u64 {
        self.checkpoints[self.region as usize]
    }
}

/// An object, as the format describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) created: u64,
    pub(crate) modified: u64,
    pub(crate) attributes: BTreeMap<String, Vec<u8>>,
    /// By units of the object: the first byte on the device, and whether it is written.
    pub(crate) units: BTreeMap<u64, (u64, bool)>,
}

/// A whole store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) objects: BTreeMap<u64, Object>,
    /// Where the next record goes.
    pub(crate) end: Head,
    /// The position of each record behind the checkpoint.
    pub(crate) records: Vec<u64>,
}

/// Reads a store.
pub(crate) fn read(disk: &Disk) -> Contents {
    let superblock = superblock(disk);
    let mut objects = read_checkpoint(disk, &superblock);
    let (mut end, mut records) = (superblock.head.clone(), Vec::new());
    while let Some((payload, count)) = record(disk, &superblock, &end) {
        let (chain, operations) = (get(&payload, (0, 4)), get(&payload, (4, 4)));
        if (chain, get(&payload, (8, 8))) != (end.chain, end.lsn) {
            break;
        }
        let mut rest = &payload[16..];
        for _ in 0..operations {
            let (header, behind) = rest.split_at(4);
            let (body, behind) = behind.split_at(get(header, (0, 2)) as usize);
            apply(&superblock, &mut objects, header[2], body);
            rest = behind;
        }
        assert!(rest.is_empty(), "a record ends with its operations");
        records.push(end.position);
        end = Head {
            position: end.position + count,
            record: end.record + 1,
            lsn: end.lsn + operations,
            chain: crc32c::crc32c(&payload).into(),
        };
    }
    Contents { objects, end, records }
}

fn read_checkpoint(disk: &Disk, superblock: &Superblock) -> BTreeMap<u64, Object> {
    let [sequence, blocks, bytes, crc] = superblock.checkpoint;
    let first = superblock.checkpoint_block();
    let mut stream = Vec::new();
    for index in 0..blocks {
        let block = block(disk, first + index);
        assert!(is_sealed(&block, b"UDCP", first + index), "block {index} of a checkpoint");
        assert_eq!((get(&block, SEQUENCE), get(&block, INDEX)), (sequence, index));
        stream.extend_from_slice(payload(&block));
        assert_eq!(get(&block, WHOLE), u64::from(crc32c::crc32c(&stream)));
    }
    assert_eq!((stream.len() as u64, u64::from(crc32c::crc32c(&stream))), (bytes, crc));
    objects_of(superblock, &stream)
}

fn objects_of(superblock: &Superblock, stream: &[u8]) -> BTreeMap<u64, Object> {
    let mut objects = BTreeMap::<u64, Object>::new();
    let (mut at, mut extents) = (0, 0);
    let word = |at: usize| get(stream, (at, 8));
    loop {
        let (kind, count) = (stream[at], get(stream, (at + 2, 2)));
        match kind {
            1 => {
                let (len, id) = (stream[at + 1] as usize, word(at + 8));
                let (size, created, modified) = (word(at + 16), word(at + 24), word(at + 32));
                let name = text(&stream[at + 40..at + 40 + len]);
                let mut object = Object { name, size, created, modified, ..Object::default() };
                at += 40 + len;
                for _ in 0..count {
                    let (key, value) = (stream[at] as usize, get(stream, (at + 1, 2)) as usize);
                    let bytes = &stream[at + 3..at + 3 + key + value];
                    object.attributes.insert(text(&bytes[..key]), bytes[key..].to_vec());
                    at += 3 + key + value;
                }
                objects.insert(id, object);
            }
            2 => {
                let object = objects.get_mut(&word(at + 8)).expect("extents follow their object");
                for entry in (at + 16..).step_by(24).take(count as usize) {
                    let (units, written) = (word(entry + 16) >> 1, word(entry + 16) & 1 == 1);
                    map(superblock, object, word(entry), word(entry + 8), units, written);
                }
                extents += count;
                at += 16 + 24 * count as usize;
            }
            3 => {
                assert_eq!((word(at + 8), word(at + 16)), (objects.len() as u64, extents));
                assert_eq!(stream.len(), at + 32, "nothing follows the end");
                return objects;
            }
            other => panic!("an entry of kind {other}"),
        }
    }
}

fn map(
    superblock: &Superblock,
    object: &mut Object,
    file: u64,
    unit: u64,
    count: u64,
    written: bool,
) {
    let first = superblock.data[0] * superblock.block_bytes + unit * superblock.unit_bytes;
    let place = |n: u64| (file + n, (first + n * superblock.unit_bytes, written));
    object.units.extend((0..count).map(place));
}

/// Reads the record that is due; `None` where the journal ends.
fn record(disk: &Disk, superblock: &Superblock, head: &Head) -> Option<(Vec<u8>, u64)> {
    let open = |index: u64| {
        let place = superblock.journal_block(head.position + index);
        let block = block(disk, place);
        let is_due = is_sealed(&block, b"UDJR", place)
            && get(&block, SEQUENCE) == head.record
            && get(&block, INDEX) == index;
        is_due.then_some(block)
    };
    let first = open(0)?;
    let count = get(&first, COUNT);
    let mut bytes = payload(&first).to_vec();
    for index in 1..count {
        let block = open(index)?;
        let same =
            [EPOCH, COUNT, WHOLE].iter().all(|&field| get(&block, field) == get(&first, field));
        if !same {
            return None;
        }
        bytes.extend_from_slice(payload(&block));
    }
    (u64::from(crc32c::crc32c(&bytes)) == get(&first, WHOLE)).then_some((bytes, count))
}

fn apply(superblock: &Superblock, objects: &mut BTreeMap<u64, Object>, kind: u8, body: &[u8]) {
    let word = |index: usize| get(body, (index * 8, 8));
    let id = word(0);
    let short = |at: usize| text(&body[at + 1..at + 1 + body[at] as usize]);
    let object = |objects: &mut BTreeMap<u64, Object>, change: &mut dyn FnMut(&mut Object)| {
        objects.get_mut(&id).into_iter().for_each(change);
    };
    match kind {
        1 => {
            let made = objects.entry(id).or_default();
            (made.name, made.created, made.modified) = (short(16), word(1), word(1));
        }
        2 => drop(objects.remove(&id)),
        3 => {
            objects.remove(&word(1));
            object(objects, &mut |object| object.name = short(16));
        }
        4 => object(objects, &mut |object| {
            map(superblock, object, word(1), word(2), word(3), word(4) != 0);
            (object.size, object.modified) = (word(5), word(6));
        }),
        5 => object(objects, &mut |object| {
            let end = word(1) + word(2);
            object.units.retain(|unit, _| *unit < word(1) || *unit >= end);
            (object.size, object.modified) = (word(3), word(4));
        }),
        6 => object(objects, &mut |object| (object.size, object.modified) = (word(1), word(2))),
        7 | 8 => object(objects, &mut |object| {
            let value = body[9 + body[8] as usize..].to_vec();
            object.attributes.remove(&short(8));
            if kind == 7 {
                object.attributes.insert(short(8), value);
            }
        }),
        other => panic!("an operation of kind {other}"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("texts are UTF-8")
}

/// Returns what a store says of itself, in the same words.
pub(crate) fn objects_in(store: &Store) -> BTreeMap<u64, Object> {
    let unit = store.info().unit.0;
    let object = |info: udirect::extent::ObjectInfo| {
        let segments = store.segments(info.id).expect("it was listed");
        let units = segments.iter().flat_map(|segment| {
            let place =
                |n| (segment.offset / unit + n, (segment.device + n * unit, segment.written));
            (0..segment.len / unit).map(place)
        });
        let object = Object {
            name: info.name.unwrap_or_default(),
            size: info.size,
            created: info.created,
            modified: info.modified,
            attributes: store.attributes(info.id).expect("it was listed").into_iter().collect(),
            units: units.collect(),
        };
        (info.id.0, object)
    };
    store.list().into_iter().map(object).collect()
}

// What the store itself does not write.

/// Makes an operation.
pub(crate) fn operation(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u16).to_le_bytes().to_vec();
    bytes.extend([kind, 0]);
    bytes.extend(body);
    bytes
}

/// Makes a body of numbers.
pub(crate) fn words(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Makes the blocks of a record at a point of the journal, with their places.
pub(crate) fn record_blocks(
    superblock: &Superblock,
    head: &Head,
    operations: &[Vec<u8>],
) -> Vec<(u64, Vec<u8>)> {
    let mut bytes = (head.chain as u32).to_le_bytes().to_vec();
    bytes.extend((operations.len() as u32).to_le_bytes());
    bytes.extend(head.lsn.to_le_bytes());
    bytes.extend(operations.concat());
    let room = superblock.block_bytes as usize - HEADER;
    let (count, whole) = (bytes.len().div_ceil(room), crc32c::crc32c(&bytes));
    let block = |(index, piece): (usize, &[u8])| {
        let place = superblock.journal_block(head.position + index as u64);
        let mut block = vec![0; superblock.block_bytes as usize];
        block[..4].copy_from_slice(b"UDJR");
        block[8..24].copy_from_slice(&superblock.store);
        set(&mut block, PLACE, place);
        set(&mut block, EPOCH, superblock.epoch);
        set(&mut block, SEQUENCE, head.record);
        set(&mut block, INDEX, index as u64);
        set(&mut block, COUNT, count as u64);
        set(&mut block, LENGTH, piece.len() as u64);
        set(&mut block, WHOLE, whole.into());
        block[HEADER..HEADER + piece.len()].copy_from_slice(piece);
        seal(&mut block);
        (place, block)
    };
    bytes.chunks(room).enumerate().map(block).collect()
}

/// Writes a record at the end of the journal.
pub(crate) fn append(disk: &Disk, operations: &[Vec<u8>]) {
    let blocks = record_blocks(&superblock(disk), &read(disk).end, operations);
    blocks.iter().for_each(|(place, block)| disk.overwrite(Lba(*place), block));
}

/// Changes the stream of the newest checkpoint, with every checksum right; it stays as long as it was.
pub(crate) fn restream(disk: &Disk, change: impl FnOnce(&mut [u8])) {
    let superblock = superblock(disk);
    let first = superblock.checkpoint_block();
    let places = first..first + superblock.checkpoint[1];
    let mut stream: Vec<u8> =
        places.clone().flat_map(|place| payload(&block(disk, place)).to_vec()).collect();
    change(&mut stream);
    let (mut at, mut crc) = (0, 0);
    for place in places {
        reseal(disk, place, |block| {
            let len = get(block, LENGTH) as usize;
            let piece = &stream[at..at + len];
            block[HEADER..HEADER + len].copy_from_slice(piece);
            crc = crc32c::crc32c_append(crc, piece);
            set(block, WHOLE, crc.into());
            at += len;
        });
    }
    for copy in 0..4 {
        reseal_superblock(disk, copy, |block| {
            if get(block, SEQUENCE) == superblock.version {
                set(block, CHECKPOINT_CRC, crc.into());
            }
        });
    }
}
