//! Faults on demand: rules that match commands, and what becomes of those.
//!
//! [`Faults`] is an [`Interposer`] with a list of [`FaultRule`]s that can change while the controller runs. The
//! first rule that fires decides; the rules after it do not see the command.
//! Invariant: what a rule decides depends on the seed, its own number and the commands that it was shown,
//! so that a run repeats and another rule does not disturb it.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::engine::lock;
use super::interposer::{CommandContext, Interposer, Lie, Verdict};
use super::io::FUA;
use crate::seed::Seed;
use crate::spec::command::NvmOpcode;
use crate::spec::status::Status;
use crate::units::{Lba, NamespaceId, QueueId};

/// What a rule does to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultAction {
    /// Completes it with this status; see [`Verdict::Fail`].
    Fail(Status),
    /// Never completes it; see [`Verdict::Drop`].
    Drop,
    /// Completes it and does nothing; see [`Verdict::Lose`].
    Lose,
    /// Executes it on blocks from here; see [`Verdict::Misdirect`].
    MisdirectTo(Lba),
    /// Executes it on blocks so far away, and not before block 0.
    MisdirectBy(i64),
    /// Flips these bits of a byte; see [`Verdict::Corrupt`].
    Corrupt {
        /// Which byte, from the first of the transfer and modulo its length.
        byte: u64,
        /// The bits.
        mask: u8,
    },
    /// Flips one bit that the seed chooses.
    FlipBit,
    /// Takes force unit access away; see [`Verdict::StripFua`].
    StripFua,
    /// Completes it only when it is aborted; see [`Verdict::Stall`].
    Stall,
    /// Has its completion lie; see [`Verdict::Lie`].
    Lie(Lie),
    /// Stops the controller; see [`Verdict::Fatal`].
    Fatal,
    /// Takes the controller away; see [`Verdict::Vanish`].
    Vanish,
}

/// Which commands meet which fault.
///
/// A new rule matches every command, always. Each method narrows that; a command has to pass all of them.
///
/// ```
/// use udirect::soft::{FaultAction, FaultRule, Faults};
/// use udirect::spec::command::NvmOpcode;
/// use udirect::spec::status::Status;
/// use udirect::units::Lba;
///
/// let faults = Faults::new(7);
/// let bad_block = FaultRule::new(FaultAction::Fail(Status::UNRECOVERED_READ));
/// let id = faults.add(bad_block.opcode(NvmOpcode::READ).blocks(Lba(8)..Lba(9)).nth(3));
/// assert_eq!(faults.fired(id), 0);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct FaultRule {
    action: FaultAction,
    opcode: Option<NvmOpcode>,
    queue: Option<QueueId>,
    namespace: Option<NamespaceId>,
    blocks: Option<Range<Lba>>,
    only_fua: bool,
    skip: u64,
    times: u64,
    chance: u32,
}

/// What the chances of a rule are out of.
const MILLION: u32 = 1_000_000;

impl FaultRule {
    /// Makes a rule that does this to every command.
    pub fn new(action: FaultAction) -> Self {
        Self {
            action,
            opcode: None,
            queue: None,
            namespace: None,
            blocks: None,
            only_fua: false,
            skip: 0,
            times: u64::MAX,
            chance: MILLION,
        }
    }

    /// Only commands with this opcode.
    pub fn opcode(self, opcode: NvmOpcode) -> Self {
        Self { opcode: Some(opcode), ..self }
    }

    /// Only commands of this submission queue.
    pub fn queue(self, queue: QueueId) -> Self {
        Self { queue: Some(queue), ..self }
    }

    /// Only commands for this namespace.
    pub fn namespace(self, namespace: NamespaceId) -> Self {
        Self { namespace: Some(namespace), ..self }
    }

    /// Only commands that name a block of this range. Flush, Dataset Management and Copy name none.
    pub fn blocks(self, blocks: Range<Lba>) -> Self {
        Self { blocks: Some(blocks), ..self }
    }

    /// Only commands that change blocks and ask for force unit access.
    pub fn fua(self) -> Self {
        Self { only_fua: true, ..self }
    }

    /// Lets the first `matches` of the commands that match pass.
    pub fn after(self, matches: u64) -> Self {
        Self { skip: matches, ..self }
    }

    /// Fires so often and not again.
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// Fires once.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Fires at the n-th command that matches, from 1, and not again.
    pub fn nth(self, n: u64) -> Self {
        self.after(n.saturating_sub(1)).once()
    }

    /// Fires so many times out of a million, as the seed decides.
    pub fn chance(self, per_million: u32) -> Self {
        Self { chance: per_million, ..self }
    }

    fn matches(&self, context: &CommandContext<'_>) -> bool {
        let command = context.command;
        self.opcode.is_none_or(|opcode| opcode.0 == command.opcode)
            && self.queue.is_none_or(|queue| queue == context.queue)
            && self.namespace.is_none_or(|namespace| namespace.0 == command.nsid)
            && self.blocks.as_ref().is_none_or(|blocks| meets(context, blocks))
            && (!self.only_fua || wants_fua(context))
    }
}

/// Says whether a command names a block of a range.
fn meets(context: &CommandContext<'_>, blocks: &Range<Lba>) -> bool {
    context.blocks().is_some_and(|(first, count)| {
        first < blocks.end && blocks.start.0 < first.0.saturating_add(count.0)
    })
}

fn wants_fua(context: &CommandContext<'_>) -> bool {
    let opcode = NvmOpcode(context.command.opcode);
    let changes = [NvmOpcode::WRITE, NvmOpcode::WRITE_ZEROES, NvmOpcode::COPY].contains(&opcode);
    changes && context.command.cdw12 & FUA != 0
}

/// The name of a rule that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultId(usize);

/// An interposer that makes faults by rules.
pub struct Faults {
    seed: u64,
    /// By their numbers; a rule that was removed keeps its place and its counts.
    rules: Mutex<Vec<Armed>>,
}

/// A rule at work.
struct Armed {
    rule: FaultRule,
    seed: Seed,
    removed: bool,
    matched: u64,
    fired: u64,
}

impl Faults {
    /// Makes an interposer without a rule. Everything that its rules leave to chance comes from the seed.
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { seed, rules: Mutex::default() })
    }

    /// Adds a rule behind those that there are.
    pub fn add(&self, rule: FaultRule) -> FaultId {
        let mut rules = self.rules();
        let id = rules.len();
        let seed = Seed::from_u64(self.seed.wrapping_add((id as u64).wrapping_mul(SPREAD)));
        rules.push(Armed { rule, seed, removed: false, matched: 0, fired: 0 });
        FaultId(id)
    }

    /// Takes a rule away.
    ///
    /// # Panics
    ///
    /// If the rule belongs to other faults.
    pub fn remove(&self, id: FaultId) {
        self.rules()[id.0].removed = true;
    }

    /// Takes all rules away.
    pub fn clear(&self) {
        self.rules().iter_mut().for_each(|armed| armed.removed = true);
    }

    /// Returns how often a rule has fired, also if it is gone.
    ///
    /// # Panics
    ///
    /// If the rule belongs to other faults.
    pub fn fired(&self, id: FaultId) -> u64 {
        self.rules()[id.0].fired
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Armed>> {
        lock(&self.rules)
    }
}

/// Keeps the seeds of neighbouring rules apart: 2^64 over the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Interposer for Faults {
    fn on_command(&self, context: &CommandContext<'_>) -> Verdict {
        let mut rules = self.rules();
        match rules.iter_mut().find_map(|armed| armed.fires(context).then_some(armed)) {
            Some(armed) => armed.verdict(context),
            None => Verdict::Execute,
        }
    }
}

impl Armed {
    /// Shows the rule a command and says whether it fires.
    fn fires(&mut self, context: &CommandContext<'_>) -> bool {
        if self.removed || self.fired == self.rule.times || !self.rule.matches(context) {
            return false;
        }
        self.matched += 1;
        let fires = self.matched > self.rule.skip
            && self.seed.chance(self.rule.chance.into(), MILLION.into());
        self.fired += u64::from(fires);
        fires
    }

    fn verdict(&mut self, context: &CommandContext<'_>) -> Verdict {
        match self.rule.action {
            FaultAction::Fail(status) => Verdict::Fail(status),
            FaultAction::Drop => Verdict::Drop,
            FaultAction::Lose => Verdict::Lose,
            FaultAction::MisdirectTo(lba) => Verdict::Misdirect(lba),
            FaultAction::MisdirectBy(distance) => {
                Verdict::Misdirect(Lba(context.command.slba().saturating_add_signed(distance)))
            }
            FaultAction::Corrupt { byte, mask } => Verdict::Corrupt { byte, mask },
            FaultAction::FlipBit => {
                Verdict::Corrupt { byte: self.seed.u64(..), mask: 1 << self.seed.below(8) }
            }
            FaultAction::StripFua => Verdict::StripFua,
            FaultAction::Stall => Verdict::Stall,
            FaultAction::Lie(lie) => Verdict::Lie(lie),
            FaultAction::Fatal => Verdict::Fatal,
            FaultAction::Vanish => Verdict::Vanish,
        }
    }
}
