//! Mounts the objects of a store as the files of one directory.
//!
//! ```sh
//! cargo run --release --example mount_object -- --format file:/tmp/image?size=1GiB /mnt
//! cargo run --release --example mount_object -- --check file:/tmp/image /mnt -- ls -l /mnt
//! ```
//!
//! The first stays until `umount /mnt`, Ctrl-C or SIGTERM; the second until its command ends. [`Files`] answers the
//! kernel, one request after the other, on the thread of the FUSE session; the main thread polls the store meanwhile.
//! Every read and write reaches the store, unless `--cached` lets the kernel keep pages.
//!
//! The invariant: a file is an object of the store and nothing else, its inode the object's number. So there is
//! nothing that an object does not have: no directories, links, owners, modes or times of one's own, and a file that
//! is unlinked while it is open is gone.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::mount::UnmountFlags;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use udirect::block::{BlockDevice, BlockError, Durability, ErrorKind};
use udirect::extent::{self, FormatOptions, NAME_BYTES_MAX, ObjectInfo, OpenOptions, Store};
use udirect::units::FileId;
use udirect::volume::{Handle, Object, Options, Volume};

/// Mounts the objects of a store as the files of one directory.
#[derive(Parser)]
struct Args {
    /// Makes an empty store first
    #[arg(long)]
    format: bool,
    /// With --format: destroys the store that is there
    #[arg(long, requires = "format")]
    force: bool,
    /// With --format: bytes of an allocation unit
    #[arg(long, value_name = "BYTES", default_value_t = 4096, requires = "format")]
    unit: u64,
    /// Lets the kernel keep pages, and so map files; without it every read and write reaches the store
    #[arg(long)]
    cached: bool,
    /// Checks the store after it was unmounted; exit code 1 if anything is wrong with it
    #[arg(long)]
    check: bool,
    /// The device, as in `mem:64MiB` or `file:/tmp/image?size=1GiB`
    address: String,
    /// The directory to mount at
    mountpoint: PathBuf,
    /// Runs a command while the store is mounted and exits as it does; without one, stays until it is unmounted
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// How often the store gets a turn when nobody asks it for anything.
const TURN: Duration = Duration::from_millis(10);

/// The longest read or write of one request; the kernel cuts longer ones.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// How long the check of a store waits for the device.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    run(&Args::parse()).unwrap_or_else(|error| {
        eprintln!("mount_object: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(args: &Args) -> Result<ExitCode> {
    let device = udirect::open::open(&args.address)?.device;
    if args.format {
        let options =
            FormatOptions { unit: args.unit, force: args.force, ..FormatOptions::default() };
        Store::format(&device, &options).context("formatting")?;
    }
    let volume = Volume::open(Arc::clone(&device), &OpenOptions::default())?;
    let handle = volume.handle(&Options::default())?;
    drop(volume);
    let code = serve(args, handle)?;
    if args.check {
        check(&device)?;
    }
    Ok(code)
}

/// Mounts the store, waits for the end of it, and makes everything durable.
fn serve(args: &Args, handle: Handle<Store>) -> Result<ExitCode> {
    let stop = stop_flag().context("handling signals")?;
    let core = Arc::new(Mutex::new(Core { handle, buffer: Vec::new() }));
    let files = Files::new(Arc::clone(&core), args.cached);
    let mountpoint = &args.mountpoint;
    let session = fuser::spawn_mount(files, mountpoint, &config())
        .with_context(|| format!("mounting at {}", mountpoint.display()))?;
    let mut command = Running::start(&args.command)?;
    if command.0.is_none() {
        eprintln!("mounted at {}", mountpoint.display());
    }
    let ended = || stop.load(Ordering::Relaxed) || session.guard.is_finished();
    let code = loop {
        if ended() {
            break command.stop();
        }
        if let Some(code) = command.ended()? {
            break code;
        }
        take_turn(&core);
    };
    unmount(session, mountpoint, &core)?;
    lock(&core).handle.sync_all().context("making the store durable")?;
    Ok(code)
}

/// Returns a flag that the first signal sets; another one ends the process at once.
fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

fn config() -> Config {
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::FSName("udirect".into()), MountOption::DefaultPermissions];
    config
}

/// What is durable only after some time becomes so though nobody asks.
fn take_turn(core: &Mutex<Core>) {
    {
        let mut core = lock(core);
        core.handle.ring();
        core.handle.poll(usize::MAX, &mut |_| {});
    }
    std::thread::sleep(TURN);
}

/// Takes the mount away. While files of it are open it stays for those who have them, and for nobody else.
fn unmount(session: BackgroundSession, mountpoint: &Path, core: &Mutex<Core>) -> Result<()> {
    match rustix::mount::unmount(mountpoint, UnmountFlags::empty()) {
        // Somebody was faster.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(rustix::io::Errno::BUSY) => {
            eprintln!("{} is in use: waiting for its files to be closed", mountpoint.display());
            rustix::mount::unmount(mountpoint, UnmountFlags::DETACH).context("unmounting")?;
            while !session.guard.is_finished() {
                take_turn(core);
            }
        }
        // Not root: a helper has mounted it, and takes it away.
        Err(_) => return session.umount_and_join().context("unmounting"),
    }
    match session.join() {
        // The kernel's word for a connection that an unmount has ended in the middle of a request.
        Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        ended => ended.context("serving the kernel's requests"),
    }
}

fn check(device: &Arc<dyn BlockDevice>) -> Result<()> {
    let report = extent::check(device, PATIENCE)?;
    for finding in &report.findings {
        println!("{finding}");
    }
    let (objects, extents) = (report.objects, report.extents);
    ensure!(report.is_sound(), "the store is damaged: {} findings", report.findings.len());
    eprintln!("the store is sound: {objects} objects, {extents} extents");
    Ok(())
}

/// The command that the store is mounted for, if there is one.
struct Running(Option<Child>);

impl Running {
    fn start(command: &[OsString]) -> Result<Self> {
        let Some((program, arguments)) = command.split_first() else { return Ok(Self(None)) };
        let child = Command::new(program).args(arguments).spawn();
        let child = child.with_context(|| format!("starting {}", program.display()))?;
        Ok(Self(Some(child)))
    }

    /// Returns the exit code, once there is one.
    fn ended(&mut self) -> Result<Option<ExitCode>> {
        let Some(child) = &mut self.0 else { return Ok(None) };
        let status = child.try_wait().context("waiting for the command")?;
        // A command that a signal has ended has no code.
        let code = |code: Option<i32>| code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        Ok(status.map(|status| ExitCode::from(code(status.code()))))
    }

    /// Ends the command; without one, being stopped is the way to end.
    fn stop(&mut self) -> ExitCode {
        let Some(child) = &mut self.0 else { return ExitCode::SUCCESS };
        // Whoever ended meanwhile cannot be killed, which is as well.
        let _ = child.kill();
        let _ = child.wait();
        ExitCode::FAILURE
    }
}

/// What one request at a time uses.
struct Core {
    handle: Handle<Store>,
    /// What was read, on its way to the kernel.
    buffer: Vec<u8>,
}

fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().expect("whoever panicked has ended the session")
}

impl Core {
    fn store(&self) -> &Store {
        self.handle.map()
    }

    fn object(&mut self, inode: INodeNo) -> Answer<Object<'_>> {
        let id = id_of(inode).ok_or(Errno::EISDIR)?;
        Ok(self.handle.object(id))
    }

    fn look_up(&self, name: &OsStr) -> Answer<ObjectInfo> {
        let id = self.store().lookup(name_of(name)?).map_err(errno)?;
        self.store().stat(id).map_err(errno)
    }

    fn create(&mut self, name: &OsStr) -> Answer<ObjectInfo> {
        self.handle.create(Some(name_of(name)?)).and_then(|object| object.info()).map_err(errno)
    }

    fn remove(&mut self, name: &OsStr) -> Answer<()> {
        let id = self.store().lookup(name_of(name)?).map_err(errno)?;
        self.handle.remove(id).map_err(errno)
    }

    fn rename(&mut self, from: &OsStr, to: &OsStr, flags: RenameFlags) -> Answer<()> {
        let replace = match flags {
            flags if flags.is_empty() => true,
            RenameFlags::RENAME_NOREPLACE => false,
            _ => return Err(Errno::EINVAL),
        };
        let id = self.store().lookup(name_of(from)?).map_err(errno)?;
        self.handle.rename(id, name_of(to)?, replace).map_err(errno)
    }

    fn read(&mut self, inode: INodeNo, offset: u64, size: u32) -> Answer<&[u8]> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(size as usize, 0);
        let result = self.object(inode)?.read_at(&mut buffer, offset).map_err(errno);
        self.buffer = buffer;
        result.map(|count| &self.buffer[..count])
    }

    fn allocate(&mut self, inode: INodeNo, bytes: Range<u64>, mode: i32) -> Answer<()> {
        let mut object = self.object(inode)?;
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let what = mode & !libc::FALLOC_FL_KEEP_SIZE;
        let result = match what {
            0 => object.preallocate(bytes, keep_size),
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => object.punch(bytes),
            // Space that is new reads as zeroes.
            libc::FALLOC_FL_ZERO_RANGE => {
                object.punch(bytes.clone()).and_then(|()| object.preallocate(bytes, keep_size))
            }
            _ => return Err(Errno::EOPNOTSUPP),
        };
        result.map_err(errno)
    }

    /// Finds the next byte with data, or without.
    fn seek(&mut self, inode: INodeNo, offset: u64, whence: i32) -> Answer<u64> {
        let object = self.object(inode)?;
        let (id, size) = (object.id(), object.len().map_err(errno)?);
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let segments = self.store().segments(id).map_err(errno)?;
        let data = segments.iter().filter(|segment| segment.written);
        let mut data = data.map(|segment| segment.offset..segment.offset + segment.len);
        match whence {
            libc::SEEK_DATA => {
                let found = data.find(|data| data.end > offset).map(|data| data.start.max(offset));
                found.filter(|found| *found < size).ok_or(Errno::ENXIO)
            }
            libc::SEEK_HOLE => Ok(data
                .fold(offset, |at, data| if data.contains(&at) { data.end } else { at })
                .min(size)),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// What a request of the kernel comes to.
type Answer<T> = std::result::Result<T, Errno>;

/// Returns what the kernel is told of an error; what an errno cannot say goes to standard error.
fn errno(error: impl Into<BlockError>) -> Errno {
    let error = error.into();
    if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Exists | ErrorKind::NoSpace) {
        eprintln!("mount_object: {error}");
    }
    Errno::from_i32(error.errno())
}

/// Returns the name that an object can have.
fn name_of(name: &OsStr) -> Answer<&str> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    extent::name_of(name.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Inode 1 is the directory's, and objects follow it: their numbers begin at 1 and are never used again.
fn inode_of(id: FileId) -> INodeNo {
    INodeNo(id.0 + 1)
}

fn id_of(inode: INodeNo) -> Option<FileId> {
    (inode != INodeNo::ROOT).then(|| FileId(inode.0 - 1))
}

/// Says whether a file can have the name of an object.
fn is_file_name(name: &str) -> bool {
    !name.contains('/') && name != "." && name != ".."
}

/// The directory: answers the kernel's requests.
struct Files {
    core: Arc<Mutex<Core>>,
    /// How files are opened.
    flags: FopenFlags,
    /// How long the kernel may believe what it was told; nobody else changes the store.
    ttl: Duration,
    /// Whose files they are.
    owner: (u32, u32),
    unit: u32,
}

impl Files {
    fn new(core: Arc<Mutex<Core>>, cached: bool) -> Self {
        let unit = lock(&core).store().info().unit.0;
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        // Without pages, sizes and times come from the store as well: it is what is asked.
        let (flags, ttl) = match cached {
            true => (FopenFlags::empty(), Duration::from_secs(1)),
            false => (FopenFlags::FOPEN_DIRECT_IO, Duration::ZERO),
        };
        Self { core, flags, ttl, owner, unit: u32::try_from(unit).unwrap_or(4096) }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    fn attributes(&self, inode: INodeNo) -> Answer<FileAttr> {
        match id_of(inode) {
            None => Ok(self.directory()),
            Some(id) => self.core().store().stat(id).map(|info| self.file(&info)).map_err(errno),
        }
    }

    fn file(&self, info: &ObjectInfo) -> FileAttr {
        let time = |nanoseconds| UNIX_EPOCH + Duration::from_nanos(nanoseconds);
        let modified = time(info.modified);
        FileAttr {
            ino: inode_of(info.id),
            size: info.size,
            blocks: info.allocated.div_ceil(512),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: time(info.created),
            kind: FileType::RegularFile,
            perm: 0o644,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: self.unit,
            flags: 0,
        }
    }

    fn directory(&self) -> FileAttr {
        let created = self.core().store().info().created;
        let info = ObjectInfo {
            id: FileId(0),
            name: None,
            size: 0,
            allocated: 0,
            extents: 0,
            created,
            modified: created,
        };
        FileAttr { kind: FileType::Directory, perm: 0o755, nlink: 2, ..self.file(&info) }
    }

    /// Sets the size. Owner and mode are what they are; times are the store's and passed over, for the sake of `touch`.
    fn change(
        &self,
        inode: INodeNo,
        mode: Option<u32>,
        owner: (Option<u32>, Option<u32>),
        size: Option<u64>,
    ) -> Answer<FileAttr> {
        let now = self.attributes(inode)?;
        let differs = |wanted: Option<u32>, is| wanted.is_some_and(|wanted| wanted != is);
        let mode = mode.map(|mode| mode & 0o7777);
        if differs(mode, now.perm.into()) || differs(owner.0, now.uid) || differs(owner.1, now.gid)
        {
            return Err(Errno::EPERM);
        }
        let Some(size) = size else { return Ok(now) };
        self.core().object(inode)?.set_len(size).map_err(errno)?;
        self.attributes(inode)
    }

    /// Fills a part of a listing: `.`, `..`, and the objects by their numbers, which are the places in the list too.
    fn list(&self, offset: u64, reply: &mut ReplyDirectory) {
        let dots = [(1, "."), (2, "..")].into_iter().filter(|(place, _)| *place > offset);
        for (place, name) in dots {
            if reply.add(INodeNo::ROOT, place, FileType::Directory, name) {
                return;
            }
        }
        for ObjectInfo { id, name, .. } in self.core().store().list() {
            let place = id.0 + 2;
            let name = name.filter(|name| place > offset && is_file_name(name));
            let Some(name) = name else { continue };
            if reply.add(inode_of(id), place, FileType::RegularFile, name) {
                return;
            }
        }
    }
}

fn answer(reply: ReplyEmpty, result: Answer<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // A kernel that offers less has taken the nearest.
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.core().look_up(name) {
            Ok(info) => reply.entry(&self.ttl, &self.file(&info), Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Ok(attributes) => reply.attr(&self.ttl, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.change(inode, mode, (uid, gid), size) {
            Ok(attributes) => reply.attr(&self.ttl, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.list(offset, &mut reply);
        reply.ok();
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.core().create(name) {
            Ok(info) => {
                let attributes = self.file(&info);
                reply.created(&self.ttl, &attributes, Generation(0), FileHandle(0), self.flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), self.flags);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.core().read(inode, offset, size) {
            Ok(bytes) => reply.data(bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durability = durability(flags);
        let mut core = self.core();
        let object = core.object(inode).map(|object| object.with(durability));
        match object.and_then(|mut object| object.write_at(data, offset).map_err(errno)) {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("requests are short")),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut core = self.core();
        answer(reply, core.object(inode).and_then(|mut object| object.sync().map_err(errno)));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.core().handle.sync_all().map_err(errno));
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let end = offset.checked_add(length).ok_or(Errno::EFBIG);
        answer(reply, end.and_then(|end| self.core().allocate(inode, offset..end, mode)));
    }

    fn lseek(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // A negative offset is no place in a file.
        let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO);
        match offset.and_then(|offset| self.core().seek(inode, offset, whence)) {
            Ok(found) => reply.offset(i64::try_from(found).expect("objects end below i64::MAX")),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.core().remove(name));
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.core().rename(name, new, flags));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let statistics = self.core().store().statistics();
        let (units, free) = (statistics.units, statistics.free.free_units);
        let name_bytes_max = NAME_BYTES_MAX as u32;
        let (files, more) = (statistics.objects, u64::from(u32::MAX));
        reply.statfs(units, free, free, files, more, self.unit, name_bytes_max, self.unit);
    }
}

/// Writes through a file that is opened so are durable when they return. The kernel asks for a sync after those that
/// go through its pages, and not after the others.
fn durability(flags: OpenFlags) -> Durability {
    match flags.0 {
        flags if flags & libc::O_SYNC == libc::O_SYNC => Durability::Full,
        flags if flags & libc::O_DSYNC != 0 => Durability::Data,
        _ => Durability::Lazy,
    }
}
