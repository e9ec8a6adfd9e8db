//! `udirect identify`: Identify Controller and Identify Namespace in the words of nvme-cli.
//!
//! The fields stand in the order of the standard, which is also nvme-cli's; those who read its text
//! or its JSON (`id-ctrl`, `id-ns`) read this. Power states and LBA formats are lists of their own.
#![forbid(unsafe_code)]

use core::fmt::Write;
use std::sync::Arc;

use anyhow::anyhow;
use serde_json::{Value as Json, json};

use super::args::{Style, Subject};
use super::failure::Failure;
use super::fields::{Field, hex, lines, number, object, oui, pretty, text};
use super::output::print;
use crate::open::{Opened, open};
use crate::spec::identify::{IdentifyController, IdentifyNamespace, LbaFormat, PowerState};
use crate::units::NamespaceId;

/// Shows what the device at `address` says of itself.
pub(super) fn run(address: &str, subject: Subject, style: Style) -> Result<(), Failure> {
    let opened = open(address)?;
    let bytes = match (subject, style) {
        (Subject::Controller, Style::Normal) => {
            controller_text(opened.controller()?.identify()).into_bytes()
        }
        (Subject::Controller, Style::Json) => {
            pretty(&controller_json(opened.controller()?.identify()))
        }
        (Subject::Namespace, Style::Normal) => {
            namespace_text(opened.namespace, &*namespace_of(&opened)?).into_bytes()
        }
        (Subject::Namespace, Style::Json) => pretty(&namespace_json(&*namespace_of(&opened)?)),
    };
    print(&bytes)
}

/// Returns what Identify Namespace returned of the namespace that was opened.
pub(super) fn namespace_of(opened: &Opened) -> Result<Arc<IdentifyNamespace>, Failure> {
    let nsid = opened.namespace;
    let found = opened.controller()?.namespaces().into_iter().find(|(id, _)| *id == nsid);
    let missing = || Failure::device(anyhow!("the controller does not list namespace {nsid}"));
    found.map(|(_, id)| id).ok_or_else(missing)
}

/// The width of a key of the controller in nvme-cli's text.
const CONTROLLER_KEY: usize = 10;

/// The width of a key of a namespace in nvme-cli's text.
const NAMESPACE_KEY: usize = 8;

fn controller_text(id: &IdentifyController) -> String {
    let mut out = "NVME Identify Controller:\n".to_owned();
    out += &lines(&controller_fields(id), CONTROLLER_KEY);
    power_states(id).enumerate().for_each(|(index, state)| out += &power_text(index, state));
    out
}

fn controller_json(id: &IdentifyController) -> Json {
    let mut all = object(&controller_fields(id));
    all.insert("psds".to_owned(), power_states(id).map(power_json).collect());
    all.into()
}

fn controller_fields(id: &IdentifyController) -> Vec<Field> {
    let mut fields = identity_fields(id);
    fields.extend(admin_fields(id));
    fields.extend(management_fields(id));
    fields.extend(io_fields(id));
    fields.extend(fabrics_fields(id));
    fields
}

/// Lists bytes 255:0: who the controller is.
fn identity_fields(id: &IdentifyController) -> Vec<Field> {
    vec![
        hex("vid", id.vid),
        hex("ssvid", id.ssvid),
        text("sn", id.serial_number()),
        text("mn", id.model_number()),
        text("fr", id.firmware_revision()),
        number("rab", id.rab),
        oui("ieee", id.ieee),
        hex("cmic", id.cmic),
        number("mdts", id.mdts),
        hex("cntlid", id.cntlid),
        hex("ver", id.ver),
        hex("rtd3r", id.rtd3r),
        hex("rtd3e", id.rtd3e),
        hex("oaes", id.oaes),
        hex("ctratt", id.ctratt),
        hex("rrls", id.rrls),
        number("cntrltype", id.cntrltype),
        text("fguid", uuid(id.fguid)),
        number("crdt1", id.crdt1),
        number("crdt2", id.crdt2),
        number("crdt3", id.crdt3),
        number("nvmsr", id.nvmsr),
        number("vwci", id.vwci),
        number("mec", id.mec),
    ]
}

/// Lists bytes 319:256: admin commands, power, temperature, capacity.
fn admin_fields(id: &IdentifyController) -> Vec<Field> {
    vec![
        hex("oacs", id.oacs),
        number("acl", id.acl),
        number("aerl", id.aerl),
        hex("frmw", id.frmw),
        hex("lpa", id.lpa),
        number("elpe", id.elpe),
        number("npss", id.npss),
        hex("avscc", id.avscc),
        hex("apsta", id.apsta),
        number("wctemp", id.wctemp),
        number("cctemp", id.cctemp),
        number("mtfa", id.mtfa),
        number("hmpre", id.hmpre),
        number("hmmin", id.hmmin),
        number("tnvmcap", id.tnvmcap),
        number("unvmcap", id.unvmcap),
        hex("rpmbs", id.rpmbs),
        number("edstt", id.edstt),
        number("dsto", id.dsto),
        number("fwug", id.fwug),
    ]
}

/// Lists bytes 511:320: heat, erasure, groups and domains.
fn management_fields(id: &IdentifyController) -> Vec<Field> {
    vec![
        number("kas", id.kas),
        hex("hctma", id.hctma),
        number("mntmt", id.mntmt),
        number("mxtmt", id.mxtmt),
        hex("sanicap", id.sanicap),
        number("hmminds", id.hmminds),
        number("hmmaxd", id.hmmaxd),
        number("nsetidmax", id.nsetidmax),
        number("endgidmax", id.endgidmax),
        number("anatt", id.anatt),
        number("anacap", id.anacap),
        number("anagrpmax", id.anagrpmax),
        number("nanagrpid", id.nanagrpid),
        number("pels", id.pels),
        number("domainid", id.domainid),
        number("megcap", id.megcap),
    ]
}

/// Lists bytes 1023:512: queues and I/O commands.
fn io_fields(id: &IdentifyController) -> Vec<Field> {
    vec![
        hex("sqes", id.sqes),
        hex("cqes", id.cqes),
        number("maxcmd", id.maxcmd),
        number("nn", id.nn),
        hex("oncs", id.oncs),
        hex("fuses", id.fuses),
        hex("fna", id.fna),
        hex("vwc", id.vwc),
        number("awun", id.awun),
        number("awupf", id.awupf),
        number("icsvscc", id.icsvscc),
        number("nwpc", id.nwpc),
        number("acwu", id.acwu),
        // The standard renamed OCFS to CDFS; nvme-cli did not.
        hex("ocfs", id.cdfs),
        hex("sgls", id.sgls),
        number("mnan", id.mnan),
        number("maxdna", id.maxdna),
        number("maxcna", id.maxcna),
        text("subnqn", id.subsystem_nqn()),
    ]
}

/// Lists bytes 2047:1792.
fn fabrics_fields(id: &IdentifyController) -> Vec<Field> {
    vec![
        number("ioccsz", id.ioccsz),
        number("iorcsz", id.iorcsz),
        number("icdoff", id.icdoff),
        hex("fcatt", id.fcatt),
        number("msdbd", id.msdbd),
        number("ofcs", id.ofcs),
    ]
}

/// Iterates over the power states that mean something: NPSS is zero-based and from a device.
fn power_states(id: &IdentifyController) -> impl Iterator<Item = &PowerState> {
    id.psd.iter().take(usize::from(id.npss) + 1)
}

fn power_text(index: usize, state: &PowerState) -> String {
    let PowerState { enlat, exlat, rrt, rrl, rwt, rwl, .. } = state;
    let non = if state.flags().non_operational() { "non-" } else { "" };
    let (most, idle) = (max_power(state), power(state.idlp.get(), state.ips));
    let (active, workload) = (power(state.actp.get(), state.aps), workload(state.aps));
    format!(
        "ps   {index:4} : mp:{most} {non}operational enlat:{enlat} exlat:{exlat} rrt:{rrt} rrl:{rrl}\n\
         {blank:12}rwt:{rwt} rwl:{rwl} idle_power:{idle} active_power:{active}\n\
         {blank:12}active_power_workload:{workload}\n",
        blank = ""
    )
}

fn max_power(state: &PowerState) -> String {
    let scale = if state.flags().fine_scale() { FINE } else { COARSE };
    power(state.mp.get(), scale << SCALE_SHIFT)
}

/// Units of 0.0001 W and 0.01 W (Base 5.17.2.1, Figure 276, IPS and APS).
const FINE: u8 = 1;
const COARSE: u8 = 2;
const SCALE_SHIFT: u8 = 6;

/// Writes a power in watts, with as many digits as its unit has.
fn power(value: u16, scale: u8) -> String {
    match scale >> SCALE_SHIFT {
        FINE => format!("{}.{:04}W", value / 10_000, value % 10_000),
        COARSE => format!("{}.{:02}W", value / 100, value % 100),
        _ => "-".to_owned(),
    }
}

/// Names the workload of ACTP (Base 5.17.2.1, Figure 276, APW).
fn workload(aps: u8) -> &'static str {
    match aps & 0b111 {
        0 => "-",
        1 => "1MiB 32 RW, 30s idle",
        2 => "80K 128KiB SW",
        _ => "reserved",
    }
}

fn power_json(state: &PowerState) -> Json {
    json!({
        "max_power": state.mp.get(),
        "flags": state.flags,
        "entry_lat": state.enlat.get(),
        "exit_lat": state.exlat.get(),
        "read_tput": state.rrt,
        "read_lat": state.rrl,
        "write_tput": state.rwt,
        "write_lat": state.rwl,
        "idle_power": state.idlp.get(),
        "idle_scale": state.ips >> SCALE_SHIFT,
        "active_power": state.actp.get(),
        "active_power_work": state.aps & 0b111,
        "active_scale": state.aps >> SCALE_SHIFT,
    })
}

fn namespace_text(nsid: NamespaceId, id: &IdentifyNamespace) -> String {
    let mut out = format!("NVME Identify Namespace {nsid}:\n");
    out += &lines(&namespace_fields(id), NAMESPACE_KEY);
    let formats = formats(id).enumerate();
    formats.for_each(|(index, format)| out += &format_text(index, format, id.format_index()));
    out
}

fn namespace_json(id: &IdentifyNamespace) -> Json {
    let mut all = object(&namespace_fields(id));
    all.insert("lbafs".to_owned(), formats(id).map(format_json).collect());
    all.into()
}

fn namespace_fields(id: &IdentifyNamespace) -> Vec<Field> {
    let mut fields = format_fields(id);
    fields.extend(atomic_fields(id));
    if id.nsfeat().preferred_io() {
        fields.extend(preferred_fields(id));
    }
    fields.extend(placement_fields(id));
    fields
}

/// Lists bytes 33:0: size and format.
fn format_fields(id: &IdentifyNamespace) -> Vec<Field> {
    vec![
        hex("nsze", id.nsze),
        hex("ncap", id.ncap),
        hex("nuse", id.nuse),
        hex("nsfeat", id.nsfeat),
        number("nlbaf", id.nlbaf),
        hex("flbas", id.flbas),
        hex("mc", id.mc),
        hex("dpc", id.dpc),
        hex("dps", id.dps),
        hex("nmic", id.nmic),
        hex("rescap", id.rescap),
        hex("fpi", id.fpi),
        number("dlfeat", id.dlfeat),
    ]
}

/// Lists bytes 63:34: atomicity and boundaries.
fn atomic_fields(id: &IdentifyNamespace) -> Vec<Field> {
    vec![
        number("nawun", id.nawun),
        number("nawupf", id.nawupf),
        number("nacwu", id.nacwu),
        number("nabsn", id.nabsn),
        number("nabo", id.nabo),
        number("nabspf", id.nabspf),
        number("noiob", id.noiob),
        number("nvmcap", id.nvmcap),
    ]
}

/// Lists bytes 73:64, which mean something only if NSFEAT says so.
fn preferred_fields(id: &IdentifyNamespace) -> Vec<Field> {
    vec![
        number("npwg", id.npwg),
        number("npwa", id.npwa),
        number("npdg", id.npdg),
        number("npda", id.npda),
        number("nows", id.nows),
    ]
}

/// Lists bytes 127:74: copy, groups and names.
fn placement_fields(id: &IdentifyNamespace) -> Vec<Field> {
    vec![
        number("mssrl", id.mssrl),
        number("mcl", id.mcl),
        number("msrc", id.msrc),
        number("nulbaf", id.nulbaf),
        number("anagrpid", id.anagrpid),
        number("nsattr", id.nsattr),
        number("nvmsetid", id.nvmsetid),
        number("endgid", id.endgid),
        text("nguid", digits(&id.nguid)),
        text("eui64", digits(&id.eui64)),
    ]
}

/// Iterates over the formats that there are; both counts are from a device.
fn formats(id: &IdentifyNamespace) -> impl Iterator<Item = &LbaFormat> {
    id.lbaf.iter().take(usize::from(id.nlbaf) + usize::from(id.nulbaf) + 1)
}

fn format_text(index: usize, format: &LbaFormat, in_use: usize) -> String {
    let LbaFormat { ms, lbads, rp } = format;
    let mark = if index == in_use { "(in use)" } else { "" };
    let line = format!("lbaf {index:2} : ms:{:<3} lbads:{lbads:<2} rp:{rp:#x} {mark}", ms.get());
    format!("{}\n", line.trim_end())
}

fn format_json(format: &LbaFormat) -> Json {
    json!({ "ms": format.ms.get(), "ds": format.lbads, "rp": format.rp })
}

/// Writes bytes as hexadecimal digits.
fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").expect("a string takes everything");
        digits
    })
}

/// Writes 16 bytes with the dashes of a UUID.
fn uuid(bytes: [u8; 16]) -> String {
    let [a, b, c, d, e] = [0..4, 4..6, 6..8, 8..10, 10..16].map(|range| digits(&bytes[range]));
    format!("{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests;
