//! Changing the machine, one step at a time, each of them said.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::super::failure::Failure;
use crate::host::modules::{self, Module, release};
use crate::host::{Host, disk};
use crate::pci::PciAddress;

/// How long a driver may take to take a device, and a module to load.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a disk may take to show after its driver: a script that mounts it next need not wait. A controller without
/// a namespace has none.
const DISK_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked whether it has.
const GLANCE: Duration = Duration::from_millis(5);

/// What can be done to a machine.
pub(super) trait Kernel {
    /// Writes to a file that is there.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// Loads a module.
    fn load(&self, module: &str) -> io::Result<()>;
    /// Gives a file to a user.
    fn give(&self, path: &Path, user: u32) -> io::Result<()>;
}

/// This machine.
pub(super) struct Machine;

impl Kernel for Machine {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // One call: sysfs takes each write for a whole value.
        OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    }

    fn load(&self, module: &str) -> io::Result<()> {
        let mut command = Command::new("modprobe");
        command.arg(module).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let start = Instant::now();
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if start.elapsed() > PATIENCE => {
                    child.kill()?;
                    child.wait()?;
                    return Err(io::ErrorKind::TimedOut.into());
                }
                None => sleep(GLANCE),
            }
        };
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        if status.success() { Ok(()) } else { Err(io::Error::other(said.trim().to_owned())) }
    }

    fn give(&self, path: &Path, user: u32) -> io::Result<()> {
        std::os::unix::fs::chown(path, Some(user), None)
    }
}

/// A hand that changes the machine, or only says what it would change.
pub(super) struct Act<'a> {
    host: &'a Host,
    kernel: &'a dyn Kernel,
    is_dry: bool,
    said: Vec<String>,
    notes: Vec<String>,
    patience: Duration,
}

impl<'a> Act<'a> {
    pub(super) fn new(host: &'a Host, kernel: &'a dyn Kernel, is_dry: bool) -> Self {
        let (said, notes) = (Vec::new(), Vec::new());
        Self { host, kernel, is_dry, said, notes, patience: PATIENCE }
    }

    /// Waits no longer than this for a driver.
    #[cfg(test)]
    pub(super) fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(super) fn host(&self) -> &'a Host {
        self.host
    }

    pub(super) fn is_dry(&self) -> bool {
        self.is_dry
    }

    /// Returns what was changed, one thing to a line.
    pub(super) fn said(&self) -> &[String] {
        &self.said
    }

    /// Returns what else is worth knowing.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(super) fn say(&mut self, what: &str) {
        self.said.push(what.to_owned());
    }

    /// Says what was changed, or would be.
    pub(super) fn say_changed(&mut self, what: &str) {
        self.said.push(if self.is_dry { format!("would: {what}") } else { what.to_owned() });
    }

    /// Writes to a file of the machine.
    pub(super) fn write(&self, below: &str, text: &str) -> Result<(), Failure> {
        if self.is_dry {
            return Ok(());
        }
        let written = self.kernel.write(&self.host.path(below), text);
        written
            .with_context(|| format!("writing {:?} to /{below}", text.trim()))
            .map_err(Failure::device)
    }

    /// Loads a module unless it is there.
    pub(super) fn load(&mut self, module: &str) -> Result<(), Failure> {
        if modules::look(self.host, module) == Module::Loaded {
            return Ok(());
        }
        if !self.is_dry {
            let loaded = self.kernel.load(module);
            let what = || format!("modprobe {module}, for kernel {}", release(self.host));
            loaded.with_context(what).map_err(Failure::device)?;
        }
        self.say_changed(&format!("module {module}: loaded"));
        Ok(())
    }

    /// Gives a file of the machine to a user.
    pub(super) fn give(&self, below: &str, user: u32) -> Result<(), Failure> {
        if self.is_dry {
            return Ok(());
        }
        let given =
            self.await_file(below).and_then(|()| self.kernel.give(&self.host.path(below), user));
        given.with_context(|| format!("giving /{below} to user {user}")).map_err(Failure::device)
    }

    fn await_file(&self, below: &str) -> io::Result<()> {
        let start = Instant::now();
        while !self.host.path(below).exists() {
            if start.elapsed() > self.patience {
                return Err(io::ErrorKind::NotFound.into());
            }
            sleep(GLANCE);
        }
        Ok(())
    }

    /// Waits until a device has a disk, or will hardly have one.
    pub(super) fn await_disk(&self, address: PciAddress) {
        let start = Instant::now();
        while disk::disks(self.host, address).is_empty() && start.elapsed() < DISK_PATIENCE {
            sleep(GLANCE);
        }
    }

    /// Waits until the driver of a device is as it should be; returns the driver that it then has.
    pub(super) fn await_driver(
        &self,
        address: PciAddress,
        is_right: impl Fn(Option<&str>) -> bool,
    ) -> Option<String> {
        let start = Instant::now();
        loop {
            let function = self.host.sysfs.function(address).ok().flatten();
            let driver = function.and_then(|function| function.driver);
            if is_right(driver.as_deref()) || start.elapsed() > self.patience {
                return driver;
            }
            sleep(GLANCE);
        }
    }
}
