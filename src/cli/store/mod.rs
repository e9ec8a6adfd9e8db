//! `udirect store`: objects on a device, from the command line.
//!
//! ```text
//!   args -> names and files checked -> device -> store -> show (ls stat df map check), copy (put get cat)
//! ```
//!
//! What only looks opens the store for reading, and then nothing on the device changes. What changes something is
//! durable when it returns, or has not happened.
#![forbid(unsafe_code)]

mod copy;
mod format;
mod show;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::args::{StoreArgs, StoreVerb};
use super::failure::Failure;
use crate::block::MapBlocks;
use crate::open::{Opened, open};
use crate::units::FileId;
use crate::volume::{OpenOptions, Store, StoreError, Volume, name_of};

/// How long the store may take to make something durable.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does what was asked for.
pub(super) fn run(args: &StoreArgs) -> Result<(), Failure> {
    let StoreArgs { address, verb } = args;
    match verb {
        StoreVerb::Format { unit, journal, checkpoint, force } => {
            let sizes = format::Sizes { unit: *unit, journal: *journal, checkpoint: *checkpoint };
            format::run(address, &sizes, *force)
        }
        StoreVerb::Ls { long, style } => show::list(&Ground::to_read(address)?, *long, *style),
        StoreVerb::Df { style } => show::fill(&Ground::to_read(address)?, *style),
        StoreVerb::Check { style } => show::check_at(address, *style),
        StoreVerb::Stat { name, style } => {
            let (ground, id) = existing(address, name)?;
            show::object(&ground, id, *style)
        }
        StoreVerb::Map { name, style } => {
            let (ground, id) = existing(address, name)?;
            show::map(&ground, id, *style)
        }
        StoreVerb::Put { file, name, replace } => {
            copy::put(address, file, name.as_deref(), *replace)
        }
        StoreVerb::Get { name, file, force } => copy::get(address, name, file, *force),
        StoreVerb::Cat { name } => copy::cat(address, name),
        StoreVerb::Rm { names } => remove(address, names),
        StoreVerb::Mv { old, new, replace } => rename(address, old, new, *replace),
    }
}

/// A store that is open.
struct Ground {
    address: String,
    /// Before the device that it is on.
    store: Store,
    opened: Opened,
}

impl Ground {
    fn to_read(address: &str) -> Result<Self, Failure> {
        Self::open(address, true)
    }

    fn to_write(address: &str) -> Result<Self, Failure> {
        Self::open(address, false)
    }

    /// Opens the store at an address. Where there is none, nothing new stays behind.
    fn open(address: &str, read_only: bool) -> Result<Self, Failure> {
        let opened = open(address)?;
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        match Store::open(&opened.device, &options) {
            Ok(store) => Ok(Self { address: address.to_owned(), store, opened }),
            Err(error) => {
                opened.discard();
                Err(Failure::of_store(address, error))
            }
        }
    }

    /// Puts the address in front of an error.
    fn blame(&self, error: StoreError) -> Failure {
        Failure::of_store(&self.address, error)
    }

    fn volume(&self) -> Volume<Store> {
        Volume::over(Arc::clone(&self.opened.device), self.store.clone())
    }

    /// Returns the object of a name, or of a number behind `#` where nothing has the name.
    fn find(&self, name: &str) -> Result<FileId, Failure> {
        let number = || name.strip_prefix('#').and_then(|number| number.parse().ok()).map(FileId);
        match self.store.lookup(name) {
            Ok(id) => Ok(id),
            Err(error) => match number() {
                Some(id) if self.store.stat(id).is_ok() => Ok(id),
                _ => Err(self.blame(error)),
            },
        }
    }

    /// Makes a change, once there is room in the journal for it.
    fn change<T>(
        &self,
        mut change: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let since = Instant::now();
        loop {
            match change() {
                Err(StoreError::NotYet) if since.elapsed() < PATIENCE => self.store.turn(),
                done => return done,
            }
        }
    }

    /// Makes everything durable that was done.
    fn sync(&self) -> Result<(), Failure> {
        let mark = self.store.sync_all().map_err(|error| self.blame(error))?;
        self.store.wait(mark, PATIENCE).map_err(|error| self.blame(error))
    }
}

/// Returns a name as it was typed, if it is one.
fn typed(name: &OsStr) -> Result<&str, Failure> {
    name_of(name.as_bytes()).map_err(|error| {
        let error = anyhow::Error::from(error);
        Failure::usage(error.context(name.to_string_lossy().escape_debug().to_string()))
    })
}

/// Opens a store for reading and looks an object up.
fn existing(address: &str, name: &OsStr) -> Result<(Ground, FileId), Failure> {
    let name = typed(name)?;
    let ground = Ground::to_read(address)?;
    let id = ground.find(name)?;
    Ok((ground, id))
}

fn remove(address: &str, names: &[OsString]) -> Result<(), Failure> {
    let names = names.iter().map(|name| typed(name)).collect::<Result<Vec<_>, _>>()?;
    let ground = Ground::to_write(address)?;
    let found = names.iter().map(|name| ground.find(name)).collect::<Result<Vec<_>, _>>();
    // A name that is given twice is one object.
    let ids: std::collections::BTreeSet<FileId> = found?.into_iter().collect();
    for id in ids {
        ground.change(|| ground.store.remove(id)).map_err(|error| ground.blame(error))?;
    }
    ground.sync()
}

fn rename(address: &str, old: &OsStr, new: &OsStr, replace: bool) -> Result<(), Failure> {
    let (old, new) = (typed(old)?, typed(new)?);
    let ground = Ground::to_write(address)?;
    let id = ground.find(old)?;
    ground
        .change(|| ground.store.rename(id, new, replace))
        .map_err(|error| taken(&ground, error))?;
    ground.sync()
}

/// Says what to do about a name that somebody has.
fn taken(ground: &Ground, error: StoreError) -> Failure {
    match error {
        StoreError::NameTaken(_) => {
            Failure::usage(anyhow::anyhow!("{}: {error} (--replace replaces it)", ground.address))
        }
        error => ground.blame(error),
    }
}
