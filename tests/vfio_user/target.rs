//! What is driven beside a listener in a thread: the program in a process, a script.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;
use udirect::transport::vfio_user::channel::{Channel, Message};

/// How long a script waits for the next question.
const PATIENCE: Duration = Duration::from_secs(20);

/// `udirect emulate`, in a process.
pub(crate) struct Program {
    child: Child,
    folder: TempDir,
}

impl Program {
    pub(crate) fn start(address: &str) -> Self {
        Self::start_in(address, tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn start_in(address: &str, folder: TempDir) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_udirect"))
            .args(["emulate", address, "--listen"])
            .arg(folder.path())
            .env_remove("UDIRECT_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let mut said = String::new();
        let stderr = child.stderr.take().expect("it was asked for");
        BufReader::new(stderr).read_line(&mut said).expect("it says where it is");
        assert!(said.contains(" is at vfio-user:"), "{said}");
        Self { child, folder }
    }

    pub(crate) fn address(&self) -> String {
        format!("vfio-user:{}", self.folder.path().display())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it is our child");
    }

    /// Has it stand still, and waits until it does.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let pid = Pid::from_child(&self.child);
        let stopped = waitpid(Some(pid), WaitOptions::UNTRACED).expect("it is our child");
        assert!(stopped.is_some_and(|(_, status)| status.stopped()), "{stopped:?}");
    }

    /// Tells it to end, and returns its exit code and what it leaves behind.
    pub(crate) fn end(mut self, signal: Signal) -> (Option<i32>, TempDir) {
        self.signal(signal);
        let code = self.child.wait().expect("it ends").code();
        (code, std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder")))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A target that answers as a script says, in a folder of its own, until its client has gone.
pub(crate) struct Script {
    folder: TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Script {
    /// `answer` gets a connection and each question that comes through it; it stops answering when it says no.
    pub(crate) fn start(
        mut answer: impl FnMut(&mut Channel, Message) -> bool + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("cntrl")).expect("a socket");
        let thread = std::thread::spawn(move || {
            let (socket, _) = listener.accept().expect("a client");
            let mut channel = Channel::over(socket.into());
            while let Ok(message) = channel.receive(PATIENCE) {
                if !answer(&mut channel, message) {
                    break;
                }
            }
        });
        Self { folder, thread: Some(thread) }
    }

    pub(crate) fn folder(&self) -> &TempDir {
        &self.folder
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let ended = self.thread.take().expect("it is taken once").join();
        if !std::thread::panicking() {
            ended.expect("the script does not panic");
        }
    }
}
