//! `udirect features`: every feature that a controller answers to, as `nvme get-feature -H` shows them.
//!
//! A feature is asked for only if Identify does not rule it out: each that is refused costs an entry of the
//! device's error log. Default and saved values, and what can be done with a feature, where Get Features takes
//! Select. `words.rs` says what a value means.
#![forbid(unsafe_code)]

mod words;

use serde_json::{Map, Value as Json, json};

use super::args::Style;
use super::failure::Failure;
use super::fields::pretty;
use super::output::print;
use crate::block::BlockError;
use crate::nvme::{Controller, FeatureQuery, FeatureValue};
use crate::open::open;
use crate::spec::feature::{FeatureCapabilities, FeatureId, Select, TemperatureThreshold};
use crate::spec::identify::IdentifyController;
use crate::units::NamespaceId;

/// Shows the features of the device at `address`.
pub(super) fn run(address: &str, style: Style) -> Result<(), Failure> {
    let opened = open(address)?;
    let found = read(opened.controller()?, opened.namespace);
    let found = found.map_err(|error| Failure::of_device(address, error))?;
    match style {
        Style::Normal => print(found.iter().map(Feature::text).collect::<String>().as_bytes()),
        Style::Json => {
            let mut all = Map::new();
            found.iter().for_each(|feature| feature.add_to(&mut all));
            print(&pretty(&all.into()))
        }
    }
}

/// A feature that the controller has.
struct Feature {
    id: FeatureId,
    dword11: u32,
    /// By what was selected; the value in use comes first.
    values: Vec<(Select, FeatureValue)>,
}

fn read(controller: &Controller, nsid: NamespaceId) -> Result<Vec<Feature>, BlockError> {
    let identify = controller.identify();
    let mut found = Vec::new();
    for (id, dword11) in questions().filter(|(id, _)| is_possible(*id, identify)) {
        let query = FeatureQuery { dword11, ..FeatureQuery::of(id) };
        if let Some(values) = values(controller, query, nsid)? {
            found.push(Feature { id, dword11, values });
        }
    }
    Ok(found)
}

/// Reads all values of a feature, or `None` if the controller does not have it.
fn values(
    controller: &Controller,
    query: FeatureQuery,
    nsid: NamespaceId,
) -> Result<Option<Vec<(Select, FeatureValue)>>, BlockError> {
    let scopes = if is_of_namespace(query.id) { [nsid, query.nsid] } else { [query.nsid, nsid] };
    for nsid in scopes {
        let query = FeatureQuery { nsid, ..query };
        let Some(current) = answer(controller, &query)? else { continue };
        let mut values = vec![(Select::CURRENT, current)];
        let more = [Select::DEFAULT, Select::SAVED, Select::CAPABILITIES];
        let selects = controller.identify().oncs().save_and_select();
        for select in more.into_iter().filter(|_| selects) {
            let value = answer(controller, &FeatureQuery { select, ..query })?;
            values.extend(value.map(|value| (select, value)));
        }
        return Ok(Some(values));
    }
    Ok(None)
}

/// Returns what the controller answers, and `None` if it refuses; an error if it gives no answer.
fn answer(
    controller: &Controller,
    query: &FeatureQuery,
) -> Result<Option<FeatureValue>, BlockError> {
    match controller.feature(query) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.status().is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Iterates over what is asked for: every identifier that the standard names, and dword 11.
fn questions() -> impl Iterator<Item = (FeatureId, u32)> {
    let under = TemperatureThreshold::new().with_side(TemperatureThreshold::UNDER);
    let named = (0..=u8::MAX).map(FeatureId).filter(|id| id.name().is_some());
    named.flat_map(move |id| {
        let more = (id == FeatureId::TEMPERATURE_THRESHOLD).then_some((id, under.into_bits()));
        [Some((id, 0)), more].into_iter().flatten()
    })
}

/// Says whether each namespace has a value of a feature (Base 5.27.1, Figure 317; NVM 4.1.3).
fn is_of_namespace(id: FeatureId) -> bool {
    [
        FeatureId::LBA_RANGE_TYPE,
        FeatureId::ERROR_RECOVERY,
        FeatureId::NAMESPACE_METADATA,
        FeatureId::RESERVATION_MASK,
        FeatureId::RESERVATION_PERSISTENCE,
        FeatureId::WRITE_PROTECTION,
    ]
    .contains(&id)
}

/// Says whether Identify leaves it open that the controller has a feature.
fn is_possible(id: FeatureId, identify: &IdentifyController) -> bool {
    let oncs = identify.oncs();
    match id {
        FeatureId::VOLATILE_WRITE_CACHE => identify.vwc().present(),
        FeatureId::AUTONOMOUS_POWER_STATE => identify.apsta & 1 == 1,
        FeatureId::HOST_MEMORY_BUFFER => identify.hmpre.get() != 0,
        FeatureId::TIMESTAMP => oncs.timestamp(),
        FeatureId::THERMAL_MANAGEMENT => identify.hctma.get() & 1 == 1,
        FeatureId::READ_RECOVERY_LEVEL => identify.rrls.get() != 0,
        FeatureId::SANITIZE_CONFIG => identify.sanicap.get() != 0,
        FeatureId::ENDURANCE_GROUP_EVENTS => identify.endgidmax.get() != 0,
        FeatureId::PREDICTABLE_LATENCY_CONFIG | FeatureId::PREDICTABLE_LATENCY_WINDOW => {
            identify.nsetidmax.get() != 0
        }
        FeatureId::RESERVATION_MASK | FeatureId::RESERVATION_PERSISTENCE => oncs.reservations(),
        FeatureId::WRITE_PROTECTION => identify.nwpc != 0,
        _ => true,
    }
}

impl Feature {
    fn text(&self) -> String {
        self.values.iter().map(|(select, value)| self.value_text(*select, value)).collect()
    }

    fn value_text(&self, select: Select, value: &FeatureValue) -> String {
        let (name, number) = (select_name(select), hex(value.dword0));
        let mut out = format!("get-feature:{}, {name} value:{number}\n", self.title());
        if select == Select::CAPABILITIES {
            let said = capabilities(value.dword0);
            said.iter().for_each(|line| out += &format!("  {line}\n"));
        } else if select == Select::CURRENT || *value != self.values[0].1 {
            let said = words::of(self.id, value);
            said.iter().for_each(|(label, word)| out += &format!("\t{label}: {word}\n"));
        }
        out
    }

    /// Adds the values, and what the one in use means, under the keys of nvme-cli.
    fn add_to(&self, all: &mut Map<String, Json>) {
        let mut values = Map::new();
        values.insert("name".into(), json!(name(self.id)));
        for (select, value) in &self.values {
            values.insert(select_name(*select).into(), json!(hex(value.dword0)));
        }
        let said = words::of(self.id, &self.values[0].1);
        let said: Map<_, _> =
            said.into_iter().map(|(label, word)| (label.to_owned(), word.to_json())).collect();
        all.insert(format!("feature: {}", self.key()), values.into());
        all.insert(format!("Feature: {}", self.key()), said.into());
    }

    fn title(&self) -> String {
        format!("{} ({})", self.key(), name(self.id))
    }

    fn key(&self) -> String {
        match self.dword11 {
            0 => format!("{:#04x}", self.id.0),
            dword11 => format!("{:#04x} cdw11:{dword11:#010x}", self.id.0),
        }
    }
}

fn name(id: FeatureId) -> &'static str {
    id.name().unwrap_or("Unknown")
}

fn select_name(select: Select) -> &'static str {
    match select {
        Select::DEFAULT => "Default",
        Select::SAVED => "Saved",
        Select::CAPABILITIES => "Supported capabilities",
        _ => "Current",
    }
}

fn capabilities(dword0: u32) -> Vec<&'static str> {
    let can = FeatureCapabilities::from_bits(dword0);
    let lines = [
        (can.saveable(), "Feature is saveable"),
        (can.per_namespace(), "Feature is per-namespace"),
        (can.changeable(), "Feature is changeable"),
    ];
    lines.into_iter().filter(|(true_of_it, _)| *true_of_it).map(|(_, line)| line).collect()
}

fn hex(value: u32) -> String {
    format!("{value:#010x}")
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn feature() -> Feature {
        let value = |dword0| FeatureValue { dword0, data: Vec::new() };
        let values = vec![
            (Select::CURRENT, value(1)),
            (Select::DEFAULT, value(1)),
            (Select::SAVED, value(0)),
            (Select::CAPABILITIES, value(5)),
        ];
        Feature { id: FeatureId::VOLATILE_WRITE_CACHE, dword11: 0, values }
    }

    #[test]
    fn a_feature_reads_as_from_nvme_cli() {
        let expected = "\
get-feature:0x06 (Volatile Write Cache), Current value:0x00000001
\tVolatile Write Cache Enable (WCE): Enabled
get-feature:0x06 (Volatile Write Cache), Default value:0x00000001
get-feature:0x06 (Volatile Write Cache), Saved value:0x00000000
\tVolatile Write Cache Enable (WCE): Disabled
get-feature:0x06 (Volatile Write Cache), Supported capabilities value:0x00000005
  Feature is saveable
  Feature is changeable
";
        assert_eq!(feature().text(), expected);
    }

    #[test]
    fn the_keys_are_those_of_nvme_cli() {
        let mut all = Map::new();
        feature().add_to(&mut all);
        let expected = json!({
            "feature: 0x06": {
                "name": "Volatile Write Cache",
                "Current": "0x00000001",
                "Default": "0x00000001",
                "Saved": "0x00000000",
                "Supported capabilities": "0x00000005",
            },
            "Feature: 0x06": { "Volatile Write Cache Enable (WCE)": "Enabled" },
        });
        assert_eq!(Json::from(all), expected);
    }

    #[test]
    fn a_controller_is_not_asked_for_what_it_says_it_lacks() {
        let mut identify = IdentifyController::new_zeroed();
        let possible = |identify: &IdentifyController| {
            questions().filter(|(id, _)| is_possible(*id, identify)).count()
        };
        let least = possible(&identify);
        identify.vwc = 1;
        identify.apsta = 1;
        identify.nwpc = 1;
        assert_eq!(possible(&identify), least + 3);
    }
}
