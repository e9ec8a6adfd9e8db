//! A controller for another process: a vfio-user socket in a folder, one client at a time.
//!
//! ```text
//!   Listener    the folder, which is locked, and the socket in it
//!    └ Session     one client: commands, memory, interrupts       (config: the PCI function that it sees)
//! ```
//!
//! Registers come by messages and are served here; doorbells are memory that the client maps too, which the controller's
//! own thread looks at. The layout is that of SPDK's target: a folder, and in it a socket named `cntrl`.
//! Invariant: whoever has the lock of the folder owns the socket in it.
#![forbid(unsafe_code)]

mod config;
mod session;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::controller::Controller;
use crate::transport::vfio_user::SOCKET_NAME;
use crate::transport::vfio_user::channel::{Channel, ChannelError};
use session::Session;

/// The length of BAR 4: the table of MSI-X in the lower half, pending bits in the upper.
const BAR4_BYTES: u64 = 128 << 10;

/// How long it may take to find out whether somebody listens at a socket.
const LOOK: Duration = Duration::from_secs(1);

/// Clients that may wait to be told that there is one already.
const BACKLOG: i32 = 16;

/// Why a controller cannot be offered to other processes, or not any longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The folder is another server's.
    #[error("{} is served by another process", folder.display())]
    InUse {
        /// Which folder.
        folder: PathBuf,
    },
    /// There is something in the place of the socket that is none.
    #[error("{} is in the way: it is no socket", path.display())]
    InTheWay {
        /// What it is.
        path: PathBuf,
    },
    /// The controller was not made to be shared.
    #[error("the controller has no doorbells to share, or no thread to serve them")]
    NotShareable,
    /// The kernel refused a step.
    #[error("{}: {step}", path.display())]
    Kernel {
        /// Of what.
        path: PathBuf,
        /// The step.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A socket that offers a controller to other processes.
///
/// ```
/// use std::os::fd::AsFd;
/// use std::os::unix::net::UnixStream;
/// use udirect::soft::{Controller, Listener, Options};
///
/// let folder = tempfile::tempdir()?;
/// let controller = Controller::new(Options::default().shareable())?;
/// let listener = Listener::bind(&controller, folder.path())?;
/// let (end, told) = UnixStream::pair()?;
/// let server = std::thread::spawn(move || listener.serve(told.as_fd()));
///
/// // In this process or in another.
/// let opened = udirect::open::open(&format!("vfio-user:{}", folder.path().display()))?;
/// assert_eq!(opened.device.geometry().capacity().0, 64 << 20);
///
/// drop((opened, end));
/// server.join().expect("it does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Listener {
    controller: Arc<Controller>,
    path: PathBuf,
    socket: OwnedFd,
    /// Locked for as long as it is open: the socket goes before.
    _folder: File,
}

impl Listener {
    /// Offers a controller in a folder, which is made if it is missing. A socket that is left over from a server that has
    /// ended is replaced.
    ///
    /// # Errors
    ///
    /// [`ListenError`]; nothing is left behind then, apart from a folder that was made.
    pub fn bind(controller: &Arc<Controller>, folder: &Path) -> Result<Self, ListenError> {
        if controller.doorbells_file().is_none() || !controller.has_thread() {
            return Err(ListenError::NotShareable);
        }
        let kernel = |step| {
            let path = folder.to_owned();
            move |source: io::Error| ListenError::Kernel { path, step, source }
        };
        if !folder.exists() {
            let made = fs::DirBuilder::new().mode(0o700).create(folder);
            made.map_err(kernel("the folder cannot be made"))?;
        }
        let lock = File::open(folder).map_err(kernel("the folder cannot be opened"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::AGAIN => ListenError::InUse { folder: folder.into() },
            error => kernel("the folder cannot be locked")(error.into()),
        })?;
        let path = folder.join(SOCKET_NAME);
        make_room(folder, &path)?;
        let socket =
            listen(&path).map_err(|error| kernel("no socket can be made in it")(error.into()))?;
        Ok(Self { controller: Arc::clone(controller), path, socket, _folder: lock })
    }

    /// Returns where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves one client after another, until `end` can be read or is closed.
    ///
    /// # Errors
    ///
    /// When the kernel lets nobody wait for clients any more.
    pub fn serve(&self, end: BorrowedFd<'_>) -> Result<(), ListenError> {
        let mut session: Option<Session> = None;
        loop {
            let (ends, calls, speaks) = self.wait(end, session.as_ref())?;
            if ends {
                return Ok(());
            }
            match &mut session {
                // Who has gone is seen off before the next one is let in.
                Some(one) if speaks => {
                    if let Err(error) = one.turn() {
                        part(&error);
                        session = None;
                    }
                }
                _ if calls => self.admit(&mut session)?,
                _ => {}
            }
        }
    }

    /// Waits for something to happen: the end, a call, a command.
    fn wait(
        &self,
        end: BorrowedFd<'_>,
        session: Option<&Session>,
    ) -> Result<(bool, bool, bool), ListenError> {
        let watched = [Some(end), Some(self.socket.as_fd()), session.map(AsFd::as_fd)];
        let watched = watched.into_iter().flatten();
        let mut events: Vec<PollFd<'_>> =
            watched.map(|one| PollFd::from_borrowed_fd(one, PollFlags::IN)).collect();
        loop {
            match poll(&mut events, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.kernel("clients cannot be waited for", error)),
            }
        }
        let happened = |at: usize| events.get(at).is_some_and(|event| !event.revents().is_empty());
        Ok((happened(0), happened(1), happened(2)))
    }

    /// Lets a client in, or turns it away by closing the connection.
    fn admit(&self, session: &mut Option<Session>) -> Result<(), ListenError> {
        match net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) if session.is_none() => {
                tracing::info!("a client has come");
                *session = Some(Session::new(&self.controller, socket));
            }
            Ok(_) => tracing::warn!("a second client was turned away"),
            // It has given up meanwhile; or it has to wait until descriptors are free.
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => {}
            Err(Errno::MFILE | Errno::NFILE) => std::thread::sleep(LOOK),
            Err(error) => return Err(self.kernel("a client cannot be let in", error)),
        }
        Ok(())
    }

    fn kernel(&self, step: &'static str, error: Errno) -> ListenError {
        ListenError::Kernel { path: self.path.clone(), step, source: error.into() }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The lock is still held: nobody else has put another one there.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the socket was not removed");
        }
    }
}

fn part(error: &ChannelError) {
    match error {
        ChannelError::Closed => tracing::info!("the client has gone"),
        error => tracing::warn!(%error, "the client was sent away"),
    }
}

/// Takes away a socket at which nobody listens.
fn make_room(folder: &Path, path: &Path) -> Result<(), ListenError> {
    let kernel = |step, source| ListenError::Kernel { path: path.into(), step, source };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(kernel("it cannot be looked at", error)),
    };
    if !found.file_type().is_socket() {
        return Err(ListenError::InTheWay { path: path.into() });
    }
    match Channel::connect(path, LOOK) {
        Err(ChannelError::Kernel(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)
                .map_err(|error| kernel("it is stale and cannot be removed", error))
        }
        // Somebody else's server, which has no use for our lock.
        _ => Err(ListenError::InUse { folder: folder.into() }),
    }
}

/// Makes a socket that only this user may connect to.
fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Before it has a name, so that there is no moment at which others may.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
