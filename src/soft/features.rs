//! Features: the settings that Set Features changes and Get Features returns.
//!
//! [`Features`] holds dword 11 of each feature that exists, checks new ones, and knows the defaults. `admin`
//! carries out what a setting means elsewhere. Nothing can be saved.
//! Invariant: every value in the table was accepted by [`Features::set`] or is a default.
#![forbid(unsafe_code)]

use super::options::Options;
use crate::spec::feature::{
    AsyncEventConfig, ErrorRecovery, FeatureCapabilities, FeatureId, NumberOfQueues,
    PowerManagement, Select, TemperatureThreshold, VolatileWriteCache,
};
use crate::spec::status::Status;

/// The over temperature threshold until a host sets another: 70 degrees.
const OVER_KELVINS: u16 = 343;

/// The settings.
#[derive(Clone)]
pub(super) struct Features {
    table: Vec<(FeatureId, u32)>,
    defaults: Vec<(FeatureId, u32)>,
    under_threshold: u16,
    has_write_cache: bool,
    queues: u16,
}

impl Features {
    pub(super) fn new(options: &Options) -> Self {
        let defaults = defaults(options);
        Self {
            table: defaults.clone(),
            defaults,
            under_threshold: 0,
            has_write_cache: options.volatile_write_cache,
            queues: options.max_queues,
        }
    }

    /// Answers Get Features with dword 0.
    pub(super) fn get(&self, id: FeatureId, select: Select, dword11: u32) -> Result<u32, Status> {
        let current = find(&self.table, id)?;
        match select {
            Select::CURRENT if id == FeatureId::TEMPERATURE_THRESHOLD => self.threshold(dword11),
            Select::CURRENT => Ok(current),
            // What cannot be saved was never saved: the default stands for it.
            Select::DEFAULT | Select::SAVED => find(&self.defaults, id),
            Select::CAPABILITIES => Ok(FeatureCapabilities::new().with_changeable(true).into()),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// Takes a new value and returns dword 0 of the completion.
    pub(super) fn set(&mut self, id: FeatureId, value: u32) -> Result<u32, Status> {
        find(&self.table, id)?;
        match id {
            FeatureId::TEMPERATURE_THRESHOLD => return self.set_threshold(value.into()),
            FeatureId::NUMBER_OF_QUEUES => return self.set_queues(value.into()),
            _ if value & !self.settable(id) != 0 => return Err(Status::INVALID_FIELD),
            _ => self.store(id, value),
        }
        Ok(0)
    }

    /// Returns the events that the host wants.
    pub(super) fn events(&self) -> AsyncEventConfig {
        self.value(FeatureId::ASYNC_EVENT_CONFIG).into()
    }

    /// Says whether a temperature is at or beyond a threshold.
    pub(super) fn is_extreme(&self, kelvins: u16) -> bool {
        u32::from(kelvins) >= self.value(FeatureId::TEMPERATURE_THRESHOLD)
            || kelvins <= self.under_threshold
    }

    /// Says whether the write cache is on.
    pub(super) fn caches_writes(&self) -> bool {
        VolatileWriteCache::from(self.value(FeatureId::VOLATILE_WRITE_CACHE)).enabled()
    }

    /// Returns how many submission and completion queues the host may make.
    pub(super) fn queues(&self) -> (u32, u32) {
        let queues = NumberOfQueues::from(self.value(FeatureId::NUMBER_OF_QUEUES));
        (queues.submission_count(), queues.completion_count())
    }

    fn value(&self, id: FeatureId) -> u32 {
        find(&self.table, id).unwrap_or(0)
    }

    fn store(&mut self, id: FeatureId, value: u32) {
        self.table.iter_mut().filter(|row| row.0 == id).for_each(|row| row.1 = value);
    }

    /// Returns the bits of dword 11 that may be set.
    fn settable(&self, id: FeatureId) -> u32 {
        match id {
            FeatureId::ARBITRATION => 0xffff_ff07,
            // The only power state is 0.
            FeatureId::POWER_MANAGEMENT => PowerManagement::new().with_workload(7).into(),
            // Reads of deallocated blocks never fail.
            FeatureId::ERROR_RECOVERY => ErrorRecovery::new().with_time_limit(u16::MAX).into(),
            FeatureId::VOLATILE_WRITE_CACHE => self.has_write_cache.into(),
            FeatureId::INTERRUPT_COALESCING => 0xffff,
            FeatureId::INTERRUPT_VECTOR => 0x1_ffff,
            FeatureId::WRITE_ATOMICITY => 1,
            FeatureId::ASYNC_EVENT_CONFIG => wanted_events().into(),
            // No timer is kept, as Identify says (KAS): only 0, which turns it off, can be set.
            _ => 0,
        }
    }

    fn threshold(&self, dword11: u32) -> Result<u32, Status> {
        let asked = TemperatureThreshold::from(dword11);
        check_sensor(asked)?;
        Ok(match asked.side() {
            TemperatureThreshold::UNDER => self.under_threshold.into(),
            _ => self.value(FeatureId::TEMPERATURE_THRESHOLD),
        })
    }

    fn set_threshold(&mut self, new: TemperatureThreshold) -> Result<u32, Status> {
        check_sensor(new)?;
        match new.side() {
            TemperatureThreshold::UNDER => self.under_threshold = new.kelvins(),
            _ => self.store(FeatureId::TEMPERATURE_THRESHOLD, new.kelvins().into()),
        }
        Ok(0)
    }

    /// Grants as many queues as are asked for and on offer.
    fn set_queues(&mut self, wanted: NumberOfQueues) -> Result<u32, Status> {
        if wanted.submission() == u16::MAX || wanted.completion() == u16::MAX {
            return Err(Status::INVALID_FIELD);
        }
        let most = self.queues - 1;
        let granted = wanted
            .with_submission(wanted.submission().min(most))
            .with_completion(wanted.completion().min(most));
        self.store(FeatureId::NUMBER_OF_QUEUES, granted.into());
        Ok(granted.into())
    }
}

fn defaults(options: &Options) -> Vec<(FeatureId, u32)> {
    let most = options.max_queues - 1;
    let queues = NumberOfQueues::new().with_submission(most).with_completion(most);
    let mut table = vec![
        (FeatureId::ARBITRATION, 6),
        (FeatureId::POWER_MANAGEMENT, 0),
        (FeatureId::TEMPERATURE_THRESHOLD, OVER_KELVINS.into()),
        (FeatureId::ERROR_RECOVERY, 0),
        (FeatureId::NUMBER_OF_QUEUES, queues.into()),
        (FeatureId::INTERRUPT_COALESCING, 0),
        (FeatureId::INTERRUPT_VECTOR, 0),
        (FeatureId::WRITE_ATOMICITY, 0),
        (FeatureId::ASYNC_EVENT_CONFIG, 0),
        (FeatureId::KEEP_ALIVE, 0),
    ];
    if options.volatile_write_cache {
        table.push((FeatureId::VOLATILE_WRITE_CACHE, 1));
    }
    table
}

/// The events that exist: critical warnings and changed namespaces.
fn wanted_events() -> AsyncEventConfig {
    AsyncEventConfig::new().with_critical_warnings(u8::MAX).with_namespace_attributes(true)
}

/// Looks a feature up; what is not in the table does not exist.
fn find(table: &[(FeatureId, u32)], id: FeatureId) -> Result<u32, Status> {
    let row = table.iter().find(|row| row.0 == id);
    row.map(|row| row.1).ok_or(Status::INVALID_FIELD)
}

/// Accepts the composite temperature, or all sensors, on either side.
fn check_sensor(asked: TemperatureThreshold) -> Result<(), Status> {
    let sensors = [TemperatureThreshold::COMPOSITE, TemperatureThreshold::ALL];
    let sides = [TemperatureThreshold::OVER, TemperatureThreshold::UNDER];
    if sensors.contains(&asked.sensor())
        && sides.contains(&asked.side())
        && u32::from(asked) & !0x003f_ffff == 0
    {
        Ok(())
    } else {
        Err(Status::INVALID_FIELD)
    }
}
