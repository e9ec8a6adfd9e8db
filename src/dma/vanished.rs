//! Registers of a device that goes away while they are mapped.
//!
//! When a device is pulled out the kernel takes its mapping away, and the next access to a register is a SIGBUS, which ends
//! the process. A bus would answer with all ones, and every driver knows what those mean. So from the first mapping on a
//! handler puts ordinary memory full of ones in the place of a mapping that faults; the access is tried again and reads them.
//! A SIGBUS anywhere else goes to whoever had the signal before.
//!
//! Invariant: a range in the table is mapped, and the mapping is nobody's but the table entry's owner's.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};
use std::io;
use std::sync::OnceLock;

use memmap2::MmapRaw;

use super::PAGE_BYTES;

/// Mapped regions of devices at most: one for each controller of a process.
const REGIONS_MAX: usize = 256;

/// A range of addresses; 0 and 0 is none. The end is stored first and taken away last, so that an entry with a start is
/// whole.
struct Range {
    start: AtomicUsize,
    end: AtomicUsize,
}

/// The ranges whose faults are answered.
static TABLE: [Range; REGIONS_MAX] =
    [const { Range { start: AtomicUsize::new(0), end: AtomicUsize::new(0) } }; REGIONS_MAX];

/// What the signal did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping of a device whose loss is answered with ones.
pub(super) struct Region {
    place: &'static Range,
    _map: MmapRaw,
}

impl Region {
    /// Answers for a mapping from now on.
    pub(super) fn guard(map: MmapRaw) -> io::Result<Self> {
        install()?;
        let start = map.as_mut_ptr().addr() & !(PAGE_BYTES - 1);
        let end = (map.as_mut_ptr().addr() + map.len()).next_multiple_of(PAGE_BYTES);
        let free = TABLE.iter().find(|range| {
            range.end.compare_exchange(0, end, Ordering::AcqRel, Ordering::Acquire).is_ok()
        });
        let place = free.ok_or_else(|| {
            io::Error::other(format!("{REGIONS_MAX} regions of devices are mapped already"))
        })?;
        place.start.store(start, Ordering::Release);
        Ok(Self { place, _map: map })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.place.start.store(0, Ordering::Release);
        self.place.end.store(0, Ordering::Release);
    }
}

/// Puts the handler in place, once for the process.
fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = *DONE.get_or_init(|| {
        let failed = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
        // SAFETY: a `sigaction` is numbers, a set of bits and an optional function: all zeroes is one.
        let mut before: libc::sigaction = unsafe { core::mem::zeroed() };
        // SAFETY: asks only, and writes to a structure of ours.
        if unsafe { libc::sigaction(libc::SIGBUS, core::ptr::null(), &raw mut before) } != 0 {
            return Err(failed());
        }
        // Before the handler can run, which looks at it.
        let _ = BEFORE.set(before);
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = answer;
        let ours = libc::sigaction {
            sa_sigaction: handler as libc::sighandler_t,
            sa_flags: libc::SA_SIGINFO | libc::SA_ONSTACK,
            ..before
        };
        // SAFETY: `answer` has the signature that SA_SIGINFO asks for, and does only what a handler may.
        match unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, core::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(failed()),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// The handler: nothing in it allocates, locks or panics.
extern "C" fn answer(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes what it knows of the signal, for as long as the handler runs.
    let told = unsafe { &*info };
    // SAFETY: SIGBUS is one of the signals that have an address.
    let address = unsafe { told.si_addr() }.addr();
    let range = TABLE.iter().find_map(|range| {
        let start = range.start.load(Ordering::Acquire);
        let end = range.end.load(Ordering::Acquire);
        (start != 0 && (start..end).contains(&address)).then_some((start, end - start))
    });
    match range {
        Some((start, len)) if put_ones(start, len) => {}
        _ => pass_on(signal, info, context),
    }
}

/// Puts memory full of ones in the place of a mapping; says whether that worked.
fn put_ones(start: usize, len: usize) -> bool {
    let (protection, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    let at = core::ptr::without_provenance_mut(start);
    // SAFETY: `errno` is this thread's, and whoever was interrupted may be about to read it.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    // SAFETY: the range is that of a mapping whose owner is in the table and so has not unmapped it; its pages are gone,
    // and all accesses to it are atomics and copies, to which other memory there is another device.
    let mapped = unsafe { libc::mmap(at, len, protection, flags, -1, 0) };
    // SAFETY: as above.
    unsafe { *errno = saved };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: it was just mapped, readable and writable, for this length.
    unsafe { mapped.cast::<u8>().write_bytes(0xff, len) };
    true
}

/// Lets whoever had the signal before deal with it; who had none lets the process end.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let before = BEFORE
        .get()
        .filter(|before| ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction));
    let Some(before) = before else {
        // The access is tried again when this returns, and then it ends the process.
        // SAFETY: setting a signal to its default touches no memory of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    };
    if before.sa_flags & libc::SA_SIGINFO != 0 {
        type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
        // SAFETY: with SA_SIGINFO the kernel was told that this is such a function.
        let handler = unsafe { core::mem::transmute::<usize, Handler>(before.sa_sigaction) };
        handler(signal, info, context);
    } else {
        // SAFETY: without SA_SIGINFO the kernel was told that this is a function of the signal's number.
        let handler =
            unsafe { core::mem::transmute::<usize, extern "C" fn(c_int)>(before.sa_sigaction) };
        handler(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::super::SharedBytes;
    use super::*;
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// A mapping whose file is cut off faults as one whose device was pulled out does.
    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * PAGE_BYTES as u64).unwrap();
        file
    }

    #[test]
    fn a_mapping_that_is_lost_reads_as_ones_and_its_neighbour_is_left_alone() {
        let (lost, kept) = (file(), file());
        let pages = 4 * PAGE_BYTES as u64;
        let gone = SharedBytes::of_device(&lost, 0, pages).unwrap();
        let there = SharedBytes::of_device(&kept, 0, pages).unwrap();
        gone.span().store32(8, 7, Ordering::Relaxed);
        there.span().store32(8, 7, Ordering::Relaxed);
        lost.set_len(0).unwrap();
        assert_eq!(gone.span().load32(8, Ordering::Acquire), u32::MAX);
        assert_eq!(gone.span().load64(3 * PAGE_BYTES, Ordering::Acquire), u64::MAX);
        // A doorbell rings nobody, and ends nobody.
        gone.span().store32(8, 1, Ordering::Release);
        assert_eq!(there.span().load32(8, Ordering::Acquire), 7);
    }

    #[test]
    fn a_place_in_the_table_is_free_again_when_its_mapping_goes() {
        let file = file();
        for _ in 0..2 * REGIONS_MAX {
            SharedBytes::of_device(&file, 0, PAGE_BYTES as u64).unwrap();
        }
    }

    /// Not ours: it ends the process, as before.
    #[test]
    fn a_fault_elsewhere_is_passed_on() {
        const INSIDE: &str = "UDIRECT_TEST_SIGBUS";
        let file = file();
        let _guarded = SharedBytes::of_device(&file, 0, PAGE_BYTES as u64).unwrap();
        if std::env::var_os(INSIDE).is_some() {
            let elsewhere = memmap2::MmapOptions::new().map_raw(&file).unwrap();
            file.set_len(0).unwrap();
            // SAFETY: none is needed: the page is gone, and the access ends the process.
            unsafe { elsewhere.as_ptr().read_volatile() };
            unreachable!("the process has ended");
        }
        let name = "dma::vanished::tests::a_fault_elsewhere_is_passed_on";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", name]).env(INSIDE, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
    }
}
