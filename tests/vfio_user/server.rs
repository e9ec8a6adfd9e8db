//! A listener in a thread of this process, for every suite that wants to drive one.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use tempfile::TempDir;
use udirect::open::embedded;
use udirect::soft::{Controller, ListenError, Listener};

/// Makes a controller that can be offered to others.
pub(crate) fn shareable(address: &str) -> Arc<Controller> {
    let options = embedded(address).expect("an address").shareable();
    Controller::new(options).expect("a controller")
}

/// A listener in a thread of this process.
pub(crate) struct Server {
    pub(crate) controller: Arc<Controller>,
    end: Option<UnixStream>,
    thread: Option<JoinHandle<Result<(), ListenError>>>,
    pub(crate) folder: TempDir,
}

impl Server {
    pub(crate) fn start(address: &str) -> Self {
        let (controller, folder) = (shareable(address), tempfile::tempdir().expect("a folder"));
        let listener = Listener::bind(&controller, folder.path()).expect("a socket");
        let (end, told) = UnixStream::pair().expect("a pipe");
        let thread = std::thread::spawn(move || listener.serve(told.as_fd()));
        Self { controller, end: Some(end), thread: Some(thread), folder }
    }

    pub(crate) fn address(&self) -> String {
        format!("vfio-user:{}", self.folder.path().display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        let served = self.thread.take().expect("it is taken once").join();
        if !std::thread::panicking() {
            served.expect("the listener does not panic").expect("it ends when it is told to");
        }
    }
}
