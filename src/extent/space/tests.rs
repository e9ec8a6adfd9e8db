//! The space against a naive one, unit by unit; its borders; and two threads at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::seed::Seed;

impl Space {
    /// Panics if an invariant does not hold.
    fn check(&self) {
        for group in &self.groups {
            group.with(|runs| {
                runs.check();
                assert_eq!((group.free(), group.occupied()), (runs.free(), runs.occupied()));
            });
        }
    }

    /// Returns the free runs in order.
    fn free_runs(&self) -> Vec<Run> {
        let of_group = |index: usize| -> Vec<Run> {
            let run = |part: Range<u32>| self.layout.run(index, &part);
            self.groups[index].with(|runs| runs.iter().map(run).collect())
        };
        (0..self.groups()).flat_map(of_group).collect()
    }
}

/// The free units, one by one.
struct Model {
    free: BTreeSet<u64>,
    layout: Layout,
}

impl Model {
    fn new(layout: Layout) -> Self {
        Self { free: layout.units().collect(), layout }
    }

    /// Returns the free runs of a part, as long as they can be without crossing a group.
    fn runs(&self, units: Range<u64>) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for &unit in self.free.range(units) {
            let (_, within) = self.layout.find(unit);
            match runs.last_mut() {
                Some(run) if run.end() == unit && within != 0 => run.units += 1,
                _ => runs.push(Run { start: unit, units: 1 }),
            }
        }
        runs
    }

    fn units_of(run: Run) -> Range<u64> {
        run.start..run.end()
    }

    fn take(&mut self, run: Run) {
        Self::units_of(run).for_each(|unit| assert!(self.free.remove(&unit), "{unit} was taken"));
    }

    fn give(&mut self, run: Run) {
        Self::units_of(run).for_each(|unit| assert!(self.free.insert(unit), "{unit} was free"));
    }

    /// Checks that `taken` is what [`Space::take`] promises.
    fn check_taken(&self, taken: Option<Run>, preferred: usize, goal: Option<u64>, most: u64) {
        let Some(taken) = taken else {
            return assert!(self.free.is_empty(), "{} units were free", self.free.len());
        };
        assert!(taken.units >= 1 && taken.units <= most);
        let runs = self.runs(self.layout.units());
        let run = runs.iter().find(|run| Self::units_of(**run).contains(&taken.start));
        let run = run.expect("what was taken was free");
        assert!(taken.end() <= run.end(), "all of it, and within one group");
        if goal.is_some_and(|goal| self.free.contains(&goal)) {
            assert_eq!(Some(taken.start), goal);
            assert_eq!(taken.units, most.min(run.end() - taken.start));
            return;
        }
        assert_eq!(taken.start, run.start);
        assert_eq!(taken.units, most.min(run.units));
        let surely = |run: &&Run| run.units >= most.next_power_of_two();
        let group_of = |run: &Run| self.layout.find(run.start).0;
        let home = preferred % self.layout.groups();
        let turns =
            |run: &Run| (group_of(run) + self.layout.groups() - home) % self.layout.groups();
        let best =
            runs.iter().filter(surely).min_by_key(|run| (turns(run), run.units.ilog2(), run.start));
        match best {
            Some(best) => assert_eq!(run, best),
            None => {
                let longest = runs.iter().map(|run| run.units.ilog2()).max();
                assert_eq!(Some(run.units.ilog2()), longest);
            }
        }
    }
}

/// Returns a number with few bits or many, so that all sizes occur.
fn any_size(seed: &mut Seed, bits: u64) -> u64 {
    let bits = seed.below(bits);
    1 + seed.below(1 << bits)
}

#[test]
fn random_operations_agree_with_a_set_of_units() {
    let mut seed = Seed::from_env("extent space");
    let total = 3 * layout::GROUP_UNITS_MIN + 100;
    let space = Space::all_free(50..50 + total);
    assert_eq!(space.groups(), 3);
    let mut model = Model::new(space.layout.clone());
    let mut held: Vec<Run> = Vec::new();
    let mut found_empty = 0;
    let rounds = if cfg!(debug_assertions) { 4000 } else { 20_000 };
    for round in 0..rounds {
        // Phases that fill to the last unit and phases that empty.
        let fills = round / 500 % 2 == 0;
        if held.is_empty() || seed.chance(if fills { 9 } else { 2 }, 10) {
            let most = any_size(&mut seed, if fills { 13 } else { 6 });
            let preferred = seed.usize(..5);
            let goal = match seed.below(3) {
                0 => None,
                1 => held.last().map(Run::end),
                _ => Some(seed.below(total + 200)),
            };
            let taken = space.take(preferred, goal, most);
            model.check_taken(taken, preferred, goal, most);
            found_empty += u32::from(taken.is_none());
            if let Some(run) = taken {
                model.take(run);
                held.push(run);
            }
        } else {
            let last = held.len() - 1;
            let at = seed.usize(..=last);
            held.swap(at, last);
            // Some of it, from either end or the middle.
            let run = held.pop().expect("it is not empty");
            let skip = seed.below(run.units) * seed.below(2);
            let units = 1 + seed.below(run.units - skip);
            let part = Run { start: run.start + skip, units };
            let rests = [(run.start, part.start), (part.end(), run.end())];
            let rests = rests.map(|(start, end)| Run { start, units: end - start });
            held.extend(rests.iter().filter(|rest| rest.units > 0));
            model.give(part);
            space.give_back(part);
        }
        space.check();
        assert_eq!(space.free_units(), model.free.len() as u64);
        assert_eq!(space.free_runs(), model.runs(space.units()));
        let probe = Run { start: seed.below(total), units: any_size(&mut seed, 8) };
        let is_free = Model::units_of(probe).all(|unit| model.free.contains(&unit));
        assert_eq!(space.is_free(probe), is_free, "{probe:?}");
    }
    assert!(found_empty > 0, "it was never full");
}

#[test]
fn a_space_from_what_is_used_has_the_rest() {
    let mut seed = Seed::from_env("extent space, loaded");
    for _ in 0..20 {
        let units = 1000..1000 + 1 + seed.below(6 * layout::GROUP_UNITS_MIN);
        let mut model = Model::new(Layout::new(units.clone()));
        let (mut used, mut at) = (Vec::new(), units.start + seed.below(3));
        while at < units.end {
            let run = Run { start: at, units: any_size(&mut seed, 12).min(units.end - at) };
            model.take(run);
            used.push((run.start, run.units));
            at = run.end() + any_size(&mut seed, 12) * seed.below(2);
        }
        let space = Space::from_used(units.clone(), used).unwrap();
        space.check();
        assert_eq!(space.free_runs(), model.runs(units));
        assert_eq!(space.free_units(), model.free.len() as u64);
    }
}

#[test]
fn what_is_used_twice_or_lies_outside_is_named() {
    let overlap = |used: &[(u64, u64)]| {
        Space::from_used(100..200, used.iter().copied()).map(|_| ()).unwrap_err()
    };
    assert_eq!(overlap(&[(100, 10), (109, 5)]), Overlap { start: 109, units: 5, left: 110..200 });
    assert_eq!(overlap(&[(99, 2)]), Overlap { start: 99, units: 2, left: 100..200 });
    assert_eq!(overlap(&[(195, 6)]), Overlap { start: 195, units: 6, left: 100..200 });
    let huge = overlap(&[(150, u64::MAX)]);
    assert_eq!(
        huge.to_string(),
        "units 150+18446744073709551615 in use where only 100 to 200 are left"
    );
    let full = Space::from_used(100..200, [(100, 60), (160, 40)]).unwrap();
    assert_eq!(full.take(0, None, 1), None);
}

#[test]
fn units_that_cross_groups_can_be_given_back_at_once() {
    let units = 0..4 * layout::GROUP_UNITS_MIN;
    let space = Space::from_used(units.clone(), [(0, units.end)]).unwrap();
    assert_eq!(space.statistics().runs, 0);
    let most = Run { start: 1, units: units.end - 2 };
    space.give_back(most);
    assert_eq!(space.statistics().runs, 4);
    assert!(space.is_free(most));
    assert!(!space.take_exact(0, units.end));
    assert!(space.take_exact(1, units.end - 2));
    assert_eq!(space.free_units(), 0);
}

#[test]
fn a_writer_with_a_goal_gets_neighbours_until_its_run_ends() {
    let space = Space::from_used(0..10_000, [(0, 100), (500, 20)]).unwrap();
    let mut goal = Some(100);
    for at in 100..500 {
        let run = space.take(0, goal, 1).unwrap();
        assert_eq!(run, Run { start: at, units: 1 });
        goal = Some(run.end());
    }
    assert_eq!(space.take(0, goal, 8), Some(Run { start: 520, units: 8 }));
    assert_eq!(space.take(0, Some(9_990), 64), Some(Run { start: 9_990, units: 10 }));
    // Nothing is as long as that: the longest run of the device, then that of the other group.
    let rest = [Run { start: 4096, units: 5894 }, Run { start: 528, units: 3568 }];
    for run in rest {
        assert_eq!(space.take(0, Some(u64::MAX), u64::MAX), Some(run));
    }
    assert_eq!(space.take(0, None, 1), None);
}

#[test]
fn statistics_tell_a_whole_space_from_a_cut_up_one() {
    let units = 0..4 * layout::GROUP_UNITS_MIN;
    let whole = Space::all_free(units.clone()).statistics();
    assert_eq!((whole.runs, whole.largest_run, whole.fragmentation), (4, 4096, 0.0));
    assert_eq!(whole.histogram[12], 4);
    let every_other = units.clone().step_by(2).map(|unit| (unit, 1));
    let crumbs = Space::from_used(units.clone(), every_other).unwrap().statistics();
    assert_eq!((crumbs.runs, crumbs.largest_run, crumbs.fragmentation), (8192, 1, 1.0));
    assert_eq!(crumbs.histogram[0], 8192);
    let eighths = units.clone().step_by(64).map(|unit| (unit, 32));
    let between = Space::from_used(units, eighths).unwrap().statistics();
    assert!((between.fragmentation - 6.0 / 11.0).abs() < 1e-9, "{between:?}");
    assert_eq!(Space::all_free(0..0).statistics().fragmentation, 0.0);
}

#[test]
#[should_panic(expected = "Run { start: 18, units: 4 } given back, where Run { start: 20")]
fn giving_back_twice_is_a_bug_that_shouts() {
    let space = Space::from_used(0..100, [(0, 20)]).unwrap();
    space.give_back(Run { start: 18, units: 4 });
}

#[test]
#[should_panic(expected = "given back to 10..100")]
fn giving_back_what_is_outside_is_a_bug_that_shouts() {
    Space::all_free(10..100).give_back(Run { start: 9, units: 1 });
}

#[test]
fn a_space_of_nothing_has_nothing() {
    let space = Space::all_free(7..7);
    assert_eq!((space.groups(), space.free_units()), (1, 0));
    assert_eq!(space.take(3, Some(7), 1), None);
    assert!(!space.take_exact(7, 1));
}

#[test]
fn two_threads_never_get_the_same_unit() {
    let mut seed = Seed::from_env("extent space, two threads");
    let total = 2 * layout::GROUP_UNITS_MIN;
    let space = Space::all_free(0..total);
    let owned: Vec<AtomicBool> = (0..total).map(|_| AtomicBool::new(false)).collect();
    let seeds = [seed.u64(..), seed.u64(..)];
    let own = |run: Run, now: bool| {
        for unit in run.start..run.end() {
            let before = owned[unit as usize].swap(now, Ordering::Relaxed);
            assert_eq!(before, !now, "unit {unit}");
        }
    };
    std::thread::scope(|scope| {
        for (preferred, seed) in seeds.into_iter().enumerate() {
            let (space, own) = (&space, &own);
            scope.spawn(move || {
                let mut seed = Seed::from_u64(seed);
                let mut held: Vec<Run> = Vec::new();
                for _ in 0..50_000 {
                    let goal = held.last().map(Run::end);
                    let most = any_size(&mut seed, 8);
                    let taken = seed.bool().then(|| space.take(preferred, goal, most)).flatten();
                    if let Some(run) = taken {
                        own(run, true);
                        held.push(run);
                    } else if !held.is_empty() {
                        let run = held.swap_remove(seed.usize(..held.len()));
                        own(run, false);
                        space.give_back(run);
                    }
                }
                held.into_iter().for_each(|run| {
                    own(run, false);
                    space.give_back(run);
                });
            });
        }
    });
    space.check();
    assert_eq!(space.free_units(), total);
    assert_eq!(space.statistics().runs, 2, "all joined again");
}
