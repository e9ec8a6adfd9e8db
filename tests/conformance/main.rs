//! One suite for every backend: what the waist promises, whoever keeps the promise.
//!
//! Each case runs against each device of [`devices`]; a backend joins by adding a line there. Devices that not every
//! machine has are named from outside: `UDIRECT_ADDRESSES="pcie:01:00.0 pcie:05:00.0/3"` are those instead, and what is on
//! them is overwritten. Every case ends with the same look around: nothing in flight, every buffer at home.

mod cases;
mod host;
mod model;
#[path = "../vfio_user/server.rs"]
mod server;

use std::sync::Arc;

use host::Host;
use server::Server;
use udirect::block::BlockDevice;
use udirect::open::open;

/// The devices under test, by address. Files are made in a folder of their own.
fn devices(folder: &std::path::Path) -> Vec<String> {
    if let Ok(addresses) = std::env::var("UDIRECT_ADDRESSES") {
        return addresses.split_whitespace().map(Into::into).collect();
    }
    let (file, protected) = (folder.join("image"), folder.join("protected"));
    vec![
        "mem:16MiB".into(),
        "mem:16MiB?lba=512".into(),
        "mem:16MiB?lba=512&max_transfer=4k&sgl=0".into(),
        "mem:16MiB?mdts=8k".into(),
        "mem:16MiB?mdts=none".into(),
        "mem:16MiB?mdts=64k&noiob=7&shadow".into(),
        "mem:16MiB?lba=512&noiob=100&thread".into(),
        "mem:16MiB?shadow&thread&sgl=0".into(),
        "mem:16MiB?entries=3&vwc=0".into(),
        format!("file:{}?size=16MiB&lba=512", file.display()),
        // Driven over a socket, with no more rights than it needs:
        "emulated:mem:16MiB?lba=512&mdts=64k".into(),
        // Small blocks, since every byte of them goes through a CRC, on both sides at times. Protection
        // information of the controller's, unseen:
        "mem:16MiB?lba=512&ms=8&pi=1".into(),
        "mem:16MiB?lba=1k&ms=8&pi=2&mset=1&thread".into(),
        "mem:16MiB?lba=512&ms=8&pi=3&pil=1&sgl=0&noiob=100".into(),
        "mem:16MiB?lba=512&ms=64&pi=1&metadata=device".into(),
        // Made and checked here, in a page of its own or between the blocks:
        "mem:16MiB?lba=512&ms=8&pi=1&metadata=check".into(),
        "mem:16MiB?lba=1k&ms=64&pi=2&pil=1&metadata=check&apptag=7&sgl=0".into(),
        "mem:16MiB?lba=512&ms=16&pi=3&mset=1&metadata=check&mdts=64k".into(),
        "mem:16MiB?lba=512&ms=8&pi=1&mset=1&metadata=check&noiob=7&thread".into(),
        format!("file:{}?size=16MiB&lba=512&ms=8&pi=2&metadata=check", protected.display()),
        // Nobody's:
        "mem:16MiB?lba=1k&ms=16&mset=1&metadata=ignore".into(),
        "mem:16MiB?lba=512&ms=16&metadata=ignore&shadow".into(),
    ]
}

/// Runs a case against every device.
fn everywhere(case: fn(&mut Host)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for address in devices(folder.path()) {
        eprintln!("on {address}");
        let server = address.strip_prefix("emulated:").map(Server::start);
        let strict = |server: &Server| format!("{}?rights=strict", server.address());
        let address = server.as_ref().map_or(address, strict);
        let opened = open(&address).unwrap_or_else(|error| panic!("{address}: {error:?}"));
        let device: Arc<dyn BlockDevice> = opened.device;
        let (_, before) = device.dma().usage();
        let mut host = Host::new(Arc::clone(&device));
        case(&mut host);
        assert_eq!(host.inflight(), 0, "{address}: something is still in flight");
        drop(host);
        let (_, after) = device.dma().usage();
        assert_eq!(after, before, "{address}: DMA memory did not come home");
        let faults = server.as_ref().map_or(0, |server| server.controller.counters().dma_faults);
        assert_eq!(faults, 0, "{address}: memory was reached for against its right");
    }
}

macro_rules! conformance {
    ($($case:ident)+) => {
        $(
            #[test]
            fn $case() {
                everywhere(cases::$case);
            }
        )+
    };
}

conformance! {
    what_is_written_is_read
    a_list_of_buffers_is_one_stream_of_bytes
    the_last_block_is_there_and_the_next_is_not
    ranges_that_wrap_are_out_of_range
    lengths_and_addresses_off_the_grid_are_refused_with_their_numbers
    a_request_without_a_byte_is_refused
    buffers_are_refused_that_the_device_may_not_touch
    refused_requests_come_back_with_their_buffers
    large_transfers_are_split_and_whole
    a_full_queue_is_a_value_and_nothing_is_lost
    nothing_completes_before_the_doorbell
    flush_and_fua_succeed
    deallocated_and_zeroed_blocks_read_as_zeroes
    compare_tells_equal_from_different
    verify_reads_without_a_buffer
    uncorrectable_blocks_cannot_be_read_until_they_are_written
    copies_arrive
    operations_that_are_not_offered_are_unsupported
    queues_open_and_close_again_and_again
    a_queue_that_is_closed_in_flight_takes_nothing_along
    two_queues_on_two_threads_do_not_meet
    depths_beyond_the_device_are_refused
    counters_count_what_happened
    random_requests_agree_with_a_byte_array
    random_requests_agree_at_every_depth
}
