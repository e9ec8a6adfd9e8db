//! Looking at a controller: log pages.
//!
//! What comes back is bytes from a device, copied out of shared memory; who asks gives them a meaning.
#![forbid(unsafe_code)]

use super::admin::no_memory;
use super::controller::Controller;
use super::memory::PAGE;
use crate::block::{BlockError, Cause};
use crate::dma::Access;
use crate::spec::command::{AdminOpcode, Command, GetLogPageDword10, GetLogPageDword11};
use crate::spec::log::LogPage;
use crate::units::NamespaceId;

impl Controller {
    /// Reads a log page of `len` bytes, a multiple of four and at most a page.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute).
    pub fn log_page(
        &self,
        page: LogPage,
        nsid: NamespaceId,
        len: usize,
    ) -> Result<Vec<u8>, BlockError> {
        let dwords = u32::try_from(len / 4).unwrap_or(0);
        if !len.is_multiple_of(4) || !(1..=PAGE as usize).contains(&len) {
            let (value, most) = (len as u64, PAGE);
            return Err(
                Cause::Invalid { what: "length of a log page", value, least: 4, most }.into()
            );
        }
        let window =
            self.domain().window(len, PAGE as usize, Access::DeviceWrites).map_err(no_memory)?;
        let numd = dwords - 1;
        let dword10 = GetLogPageDword10::new().with_lid(page.0).with_numdl(numd as u16);
        let command = Command {
            opcode: AdminOpcode::GET_LOG_PAGE.0,
            nsid: nsid.0,
            dptr: [window.iova().0, 0],
            cdw10: dword10.into_bits(),
            cdw11: GetLogPageDword11::new().with_numdu((numd >> 16) as u16).into_bits(),
            ..Command::default()
        };
        self.execute(command, "Get Log Page")?;
        let mut bytes = vec![0; len];
        window.span().read_into(&mut bytes);
        Ok(bytes)
    }
}
