//! The hook: sees every command before it is executed, and looks at what a power cut would leave just then.
//!
//! A write with FUA is executed as one without, and made durable before the next command: in between it is torn like
//! any other write. So an image also shows the power going in the middle of such a write.

use std::sync::{Arc, Mutex};

use udirect::soft::{CommandContext, Disk, Faults, Interposer, PendingWrite, Verdict};
use udirect::spec::command::NvmOpcode;
use udirect::units::{BlockCount, Lba};

use super::image::Examiner;
use super::watch::{SharedModel, enter};

/// Where commands are looked at.
pub(crate) struct Hook {
    pub(crate) faults: Arc<Faults>,
    pub(crate) model: SharedModel,
    state: Mutex<State>,
}

/// Looks at the disk before a command, beside the random images.
pub(crate) type Onlooker = Box<dyn FnMut(&Sight<'_>, &mut Examiner) -> Result<(), String> + Send>;

/// What an onlooker sees.
pub(crate) struct Sight<'a> {
    pub(crate) disk: &'a Arc<Disk>,
    pub(crate) model: &'a SharedModel,
    /// Writes that are not durable.
    pub(crate) pending: &'a [PendingWrite],
}

struct State {
    disk: Arc<Disk>,
    examiner: Examiner,
    /// Images for each command, out of a thousand.
    rate: u64,
    /// Whether writes with FUA may tear.
    tears: bool,
    torn: Vec<(Lba, BlockCount)>,
    onlooker: Option<Onlooker>,
    violation: Option<String>,
    commands: u64,
    verbose: bool,
}

/// The bit of a command that asks for force unit access.
const FUA: u32 = 1 << 30;

impl Hook {
    pub(crate) fn new(
        disk: &Arc<Disk>,
        examiner: Examiner,
        model: &SharedModel,
        faults: Arc<Faults>,
    ) -> Self {
        let state = State {
            disk: Arc::clone(disk),
            examiner,
            rate: 0,
            tears: true,
            torn: Vec::new(),
            onlooker: None,
            violation: None,
            commands: 0,
            verbose: false,
        };
        Self { faults, model: Arc::clone(model), state: Mutex::new(state) }
    }

    /// Sets how many images are looked at, out of a thousand commands.
    pub(crate) fn set_rate(&self, rate: u64) {
        enter(&self.state).rate = rate;
    }

    /// Prints every command.
    pub(crate) fn set_verbose(&self, verbose: bool) {
        enter(&self.state).verbose = verbose;
    }

    /// Lets somebody look on.
    pub(crate) fn look_on(&self, onlooker: Onlooker) {
        enter(&self.state).onlooker = Some(onlooker);
    }

    /// From here on a write with FUA is durable in the moment in which it is executed.
    pub(crate) fn tear_no_more(&self) {
        self.settle();
        enter(&self.state).tears = false;
    }

    pub(crate) fn take_violation(&self) -> Option<String> {
        enter(&self.state).violation.take()
    }

    pub(crate) fn with<T>(&self, what: impl FnOnce(&mut Examiner) -> T) -> T {
        what(&mut enter(&self.state).examiner)
    }

    /// Returns the commands that were seen.
    pub(crate) fn commands(&self) -> u64 {
        enter(&self.state).commands
    }

    /// Looks at an image now.
    pub(crate) fn look(&self) {
        enter(&self.state).look(&self.model, 1000);
    }

    /// Makes writes with FUA durable that were executed: the host is about to hear of it.
    pub(crate) fn settle(&self) {
        let mut state = enter(&self.state);
        if !state.torn.is_empty() {
            let rate = state.rate;
            state.look(&self.model, rate);
            state.settle();
        }
    }
}

impl State {
    fn look(&mut self, model: &SharedModel, rate: u64) {
        if self.violation.is_some() || self.disk.power_is_cut() {
            return;
        }
        if let Some(onlooker) = &mut self.onlooker {
            let pending = self.disk.pending();
            let sight = Sight { disk: &self.disk, model, pending: &pending };
            self.violation = onlooker(&sight, &mut self.examiner).err();
        }
        let mut left = rate;
        while left > 0 && self.violation.is_none() {
            if self.examiner.seed.below(1000) < left {
                let image = self.disk.crash(&mut self.examiner.seed);
                self.violation = self.examiner.examine(&image, &enter(model)).err();
            }
            left = left.saturating_sub(1000);
        }
    }

    fn settle(&mut self) {
        for (lba, blocks) in core::mem::take(&mut self.torn) {
            let mut bytes = vec![0; (blocks.0 << self.disk.lba_size().shift()) as usize];
            self.disk.read_now(lba, &mut bytes);
            self.disk.overwrite(lba, &bytes);
        }
    }
}

impl Interposer for Hook {
    fn on_command(&self, context: &CommandContext<'_>) -> Verdict {
        let mut state = enter(&self.state);
        state.commands += 1;
        let rate = state.rate;
        state.look(&self.model, rate);
        state.settle();
        let (opcode, slba) = (context.command.opcode, context.command.slba());
        state.examiner.note(u64::from(opcode) << 56 ^ slba);
        let verdict = self.faults.on_command(context);
        if state.verbose {
            let forced = context.command.cdw12 & FUA != 0;
            eprintln!("     command {opcode:#x} {:?} fua {forced}: {verdict:?}", context.blocks());
        }
        let forced = [NvmOpcode::WRITE, NvmOpcode::WRITE_ZEROES].contains(&NvmOpcode(opcode))
            && context.command.cdw12 & FUA != 0;
        match (verdict, context.blocks()) {
            (Verdict::Execute, Some(range)) if forced && state.tears => {
                state.torn.push(range);
                Verdict::StripFua
            }
            (verdict, _) => verdict,
        }
    }
}
