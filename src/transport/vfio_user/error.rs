//! Why a target cannot be driven over vfio-user: one sentence that names its socket, and what helps.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use super::channel::ChannelError;

/// Why a target cannot be driven over vfio-user. Nothing stays open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioUserError {
    /// There is nothing at the path.
    #[error("there is nothing at {}: start the target first, or look where its socket is", path.display())]
    NotThere {
        /// Where it should be.
        path: PathBuf,
    },
    /// What is at the path is no socket.
    #[error("{} is neither a socket nor a folder with a socket named cntrl in it", path.display())]
    NotASocket {
        /// Where it is.
        path: PathBuf,
    },
    /// The socket is left over from a target that has ended.
    #[error("nobody listens at {}: the target that made it has ended", path.display())]
    NobodyListens {
        /// Where it is.
        path: PathBuf,
    },
    /// The socket cannot be connected to.
    #[error("{} cannot be connected to", path.display())]
    Unreachable {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: ChannelError,
    },
    /// The target did not do what it was asked to.
    #[error("{}: {step}", path.display())]
    Failed {
        /// Where it is.
        path: PathBuf,
        /// What it was asked to.
        step: &'static str,
        /// What it did.
        source: ChannelError,
    },
    /// The target is none that can be driven.
    #[error("{} cannot be driven: {what}", path.display())]
    Unusable {
        /// Where it is.
        path: PathBuf,
        /// What is missing, with numbers.
        what: String,
    },
    /// The kernel refused a step on our side.
    #[error("{}: {what}", path.display())]
    Kernel {
        /// Where the target is.
        path: PathBuf,
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl VfioUserError {
    /// Says whether the request was wrong, and not the target: what was asked for can never be, as things are.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Failed { .. } | Self::Kernel { .. })
    }
}
