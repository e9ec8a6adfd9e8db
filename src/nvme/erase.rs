//! Format NVM and Sanitize: what erases, and never while somebody could read or write.
//!
//! Both are refused while a queue is open, and keep queues from being opened while the command runs. A format
//! may change the size of a block: a namespace that was opened before opens no queue afterwards, the controller
//! hands out a new one. A sanitize goes on after its command has ended; [`Controller::sanitize_status`] tells.
#![forbid(unsafe_code)]

use std::time::Duration;

use zerocopy::FromBytes;

use super::controller::Controller;
use crate::block::{BlockError, Cause};
use crate::spec::command::{AdminOpcode, Command};
use crate::spec::erase::{FormatDword10, SanitizeDword10, SanitizeStatusLog};
use crate::spec::log::LogPage;
use crate::units::NamespaceId;

impl Controller {
    /// Formats a namespace, or all of them, and waits `patience` for it at most.
    ///
    /// # Errors
    ///
    /// `Busy` while a queue is open; otherwise as [`execute`](Self::execute). After `Timeout` the controller is
    /// reset, as after every command that does not end.
    pub fn format(
        &self,
        nsid: NamespaceId,
        how: FormatDword10,
        patience: Duration,
    ) -> Result<(), BlockError> {
        let _quiet = self.keep_quiet("Format NVM")?;
        let command = Command {
            opcode: AdminOpcode::FORMAT_NVM.0,
            nsid: nsid.0,
            cdw10: how.into_bits(),
            ..Command::default()
        };
        let result = self.execute_within(command, "Format NVM", patience).map(drop);
        // A format that failed may have gone half-way: the namespace is looked at again in any case.
        let seen = self.look_again(|id| self.is_formatted_with(nsid, id));
        result.and(seen)
    }

    /// Says whether a format of `asked` concerns namespace `nsid`.
    fn is_formatted_with(&self, asked: NamespaceId, nsid: NamespaceId) -> bool {
        let fna = self.identify().fna();
        asked == nsid || asked == NamespaceId::ALL || fna.format_all() || fna.erase_all()
    }

    /// Starts a sanitize; `pattern` is what an overwrite writes. It is over when
    /// [`sanitize_status`](Self::sanitize_status) says so.
    ///
    /// # Errors
    ///
    /// `Busy` while a queue is open; otherwise as [`execute`](Self::execute).
    pub fn sanitize(&self, how: SanitizeDword10, pattern: u32) -> Result<(), BlockError> {
        let _quiet = self.keep_quiet("Sanitize")?;
        let command = Command {
            opcode: AdminOpcode::SANITIZE.0,
            cdw10: how.into_bits(),
            cdw11: pattern,
            ..Command::default()
        };
        self.execute(command, "Sanitize").map(drop)
    }

    /// Returns how far a sanitize has come and how the last one ended.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute): a controller without sanitize has no such page.
    pub fn sanitize_status(&self) -> Result<SanitizeStatusLog, BlockError> {
        let len = size_of::<SanitizeStatusLog>();
        let bytes = self.log_page(LogPage::SANITIZE_STATUS, NamespaceId::ALL, len)?;
        Ok(SanitizeStatusLog::read_from_bytes(&bytes).expect("it was read for its length"))
    }

    /// Keeps queues from being opened for as long as the token lives.
    fn keep_quiet(&self, why: &'static str) -> Result<Quiet<'_>, BlockError> {
        let mut ids = self.lock_ids();
        let open = ids.taken.iter().filter(|taken| **taken).count();
        if open > 0 {
            let what = format!("{open} open queues: {why} needs them closed").into();
            return Err(Cause::Busy { what }.into());
        }
        if let Some(other) = ids.kept_by.replace(why) {
            ids.kept_by = Some(other);
            return Err(Cause::Busy { what: format!("the controller, by {other}").into() }.into());
        }
        Ok(Quiet { controller: self })
    }
}

/// The promise that no queue is opened.
#[must_use]
struct Quiet<'a> {
    controller: &'a Controller,
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.controller.lock_ids().kept_by = None;
    }
}
