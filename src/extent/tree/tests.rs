//! The map against a naive one, unit by unit, and its borders.
//!
//! [`Small`] has leaves of four entries of at most five units, so that a few hundred units split and join
//! leaves and cut long extents all the time. The invariants are checked after every operation.

use std::collections::BTreeMap;

use super::*;
use crate::seed::Seed;

type Small = Tree<4, 5>;

/// Each unit with its unit of the device and whether it is written.
type Model = BTreeMap<u64, (u64, bool)>;

impl<const LEAF: usize, const LONGEST: u64> Tree<LEAF, LONGEST> {
    /// Returns the entries as they are kept.
    fn entries_kept(&self) -> Vec<Mapped> {
        let mut place = self.leaves.first_ending_after(0);
        let mut entries = Vec::new();
        while let Some(entry) = self.leaves.get(place) {
            entries.push(entry);
            place = self.leaves.next(place);
        }
        entries
    }

    /// Panics if an invariant does not hold.
    fn check(&self) {
        self.leaves.check();
        let entries = self.entries_kept();
        assert_eq!(entries.len(), self.len());
        assert_eq!(entries.iter().map(|entry| entry.units).sum::<u64>(), self.units());
        assert!(entries.iter().all(|entry| entry.units <= LONGEST));
        for pair in entries.windows(2) {
            let joins = pair[0].goes_on_in(&pair[1]);
            assert!(!joins || pair[0].units + pair[1].units > LONGEST, "{pair:?} could be one");
        }
    }
}

/// Returns the extents of a range of the model, as long as they can be.
fn runs_of(model: &Model, range: Range<u64>) -> Vec<Mapped> {
    let mut runs: Vec<Mapped> = Vec::new();
    for (&file, &(device, written)) in model.range(range) {
        let unit = Mapped { file, device, units: 1, written };
        match runs.last_mut() {
            Some(run) if run.goes_on_in(&unit) => run.units += 1,
            _ => runs.push(unit),
        }
    }
    runs
}

/// Checks what the map says about one unit against the extents of the whole model.
fn check_find<const LEAF: usize, const LONGEST: u64>(
    tree: &Tree<LEAF, LONGEST>,
    runs: &[Mapped],
    at: u64,
) {
    let next = runs.iter().find(|run| run.end() > at);
    match (tree.find(at), next) {
        (Found::Hole(None), None) => {}
        (Found::Hole(Some(units)), Some(run)) => assert_eq!(at + units, run.file),
        (Found::Extent(found), Some(run)) => {
            let rest = run.from(at);
            assert_eq!(found, Mapped { units: found.units, ..rest });
            assert!(found.units >= rest.units.min(LONGEST) && found.units <= rest.units);
        }
        (found, run) => panic!("{found:?} at {at}, where {run:?} is next"),
    }
    let before = runs.iter().rfind(|run| run.file < at).map(|run| run.before(at).end());
    assert_eq!(tree.before(at).map(|entry| entry.end()), before, "before {at}");
}

fn agree_with_model<const LEAF: usize, const LONGEST: u64>(
    units: u64,
    rounds: u64,
    seed: &mut Seed,
) {
    let mut tree = Tree::<LEAF, LONGEST>::new();
    let mut model = Model::new();
    let mut most_leaves = 0;
    for round in 0..rounds {
        let at = seed.below(units);
        let longest = [3, 12, 80][seed.usize(..3)];
        let range = at..(at + 1 + seed.below(longest)).min(units);
        // Phases that fill and phases that empty.
        let fills = round / 400 % 2 == 0;
        match seed.below(10) {
            0..3 => {
                tree.set_written(range.clone());
                model.range_mut(range).for_each(|(_, unit)| unit.1 = true);
            }
            // The device's units follow the file's more often than not.
            kind if (kind < 9) == fills => {
                let written = seed.bool();
                let shift = [0, 0, 0, 1000, 5000][seed.usize(..5)];
                let free: Vec<u64> = range.filter(|unit| !model.contains_key(unit)).collect();
                for unit in free {
                    model.insert(unit, (unit + shift, written));
                    tree.insert(Mapped { file: unit, device: unit + shift, units: 1, written });
                }
            }
            _ => {
                let mut removed = Vec::new();
                tree.remove(range.clone(), &mut |piece| removed.push(piece));
                assert_eq!(removed, runs_of(&model, range.clone()));
                model.retain(|unit, _| !range.contains(unit));
            }
        }
        tree.check();
        let runs = runs_of(&model, 0..units);
        assert_eq!(tree.iter().collect::<Vec<_>>(), runs);
        assert_eq!(tree.end(), runs.last().map_or(0, Mapped::end));
        check_find(&tree, &runs, seed.below(units + 2));
        let (one, other) = (seed.below(units), seed.below(units));
        let part = one.min(other)..one.max(other);
        assert_eq!(tree.range(part.clone()).collect::<Vec<_>>(), runs_of(&model, part));
        most_leaves = most_leaves.max(tree.leaves.leaves());
    }
    assert!(most_leaves > 5, "{most_leaves} leaves: too few to prove anything");
}

#[test]
fn random_operations_agree_with_a_map_of_units() {
    let mut seed = Seed::from_env("extent tree");
    let rounds = if cfg!(debug_assertions) { 3000 } else { 20_000 };
    agree_with_model::<4, 5>(300, rounds, &mut seed);
    agree_with_model::<8, 1>(300, rounds, &mut seed);
    agree_with_model::<4, 64>(600, rounds, &mut seed);
}

#[test]
fn whole_runs_inserted_at_random_agree_with_a_map_of_units() {
    let mut seed = Seed::from_env("extent tree, whole runs");
    for _ in 0..300 {
        let (mut tree, mut model) = (Small::new(), Model::new());
        for _ in 0..60 {
            let (at, shift) = (seed.below(400), [0, 0, 1000][seed.usize(..3)]);
            let new = Mapped {
                file: at,
                device: at + shift,
                units: 1 + seed.below(30),
                written: seed.bool(),
            };
            if model.range(at..new.end()).next().is_none() {
                tree.insert(new);
                let units = (at..new.end()).map(|unit| (unit, (unit + shift, new.written)));
                model.extend(units);
            }
            tree.check();
            assert_eq!(tree.iter().collect::<Vec<_>>(), runs_of(&model, 0..500));
        }
    }
}

fn written(file: u64, device: u64, units: u64) -> Mapped {
    Mapped { file, device, units, written: true }
}

#[test]
fn an_empty_map_is_one_hole_without_memory() {
    let mut tree = ExtentTree::new();
    assert_eq!(tree.find(0), Found::Hole(None));
    assert_eq!(tree.find(u64::MAX), Found::Hole(None));
    assert_eq!((tree.last(), tree.end(), tree.heap_bytes()), (None, 0, 0));
    tree.remove(0..u64::MAX, &mut |piece| panic!("{piece:?}"));
    tree.set_written(0..u64::MAX);
    assert!(tree.is_empty());
}

#[test]
fn extents_at_both_limits_fit_and_one_unit_more_does_not() {
    let last = written(FILE_UNITS_MAX - 1, DEVICE_UNITS_MAX - 1, 1);
    assert!(last.fits());
    assert!(!Mapped { units: 2, ..last }.fits());
    assert!(!Mapped { units: 0, ..last }.fits());
    assert!(!Mapped { units: u64::MAX, ..last }.fits());
    assert!(!Mapped { file: FILE_UNITS_MAX, ..last }.fits());
    assert!(!Mapped { device: DEVICE_UNITS_MAX, ..last }.fits());
    let mut tree = ExtentTree::new();
    tree.insert(last);
    tree.insert(written(0, 0, ENTRY_UNITS_MAX));
    assert_eq!(tree.find(last.file), Found::Extent(last));
    assert_eq!(tree.find(ENTRY_UNITS_MAX), Found::Hole(Some(last.file - ENTRY_UNITS_MAX)));
    assert_eq!(tree.end(), FILE_UNITS_MAX);
    assert_eq!(tree.iter().count(), 2);
}

#[test]
fn a_run_of_many_entries_is_one_extent() {
    let long = written(7, 1 << 40, 10 * ENTRY_UNITS_MAX + 3);
    let mut tree = ExtentTree::new();
    tree.insert(long);
    assert_eq!(tree.len(), 11);
    assert_eq!(tree.iter().collect::<Vec<_>>(), [long]);
    let Found::Extent(found) = tree.find(8) else { panic!("it is mapped") };
    assert!(found.units >= ENTRY_UNITS_MAX && found.units < 2 * ENTRY_UNITS_MAX);
    let mut removed = Vec::new();
    tree.remove(8..long.end() - 1, &mut |piece| removed.push(piece));
    assert_eq!(removed, [long.from(8).before(long.end() - 1)]);
    assert_eq!((tree.len(), tree.units()), (2, 2));
}

#[test]
fn neighbours_join_only_if_file_device_and_state_go_on() {
    let mut tree = ExtentTree::new();
    tree.insert(written(10, 110, 5));
    tree.insert(written(20, 120, 5));
    tree.insert(Mapped { written: false, ..written(25, 125, 5) });
    tree.insert(written(30, 131, 5));
    assert_eq!(tree.len(), 4);
    tree.insert(written(15, 115, 5));
    assert_eq!(tree.len(), 3);
    tree.set_written(25..30);
    assert_eq!(tree.iter().collect::<Vec<_>>(), [written(10, 110, 20), written(30, 131, 5)]);
}

#[test]
#[should_panic(expected = "over")]
fn mapping_a_unit_twice_is_a_bug_that_shouts() {
    let mut tree = ExtentTree::new();
    tree.insert(written(10, 10, 5));
    tree.insert(written(8, 100, 3));
}

#[test]
#[should_panic(expected = "before the end at 15")]
fn pushing_before_the_end_is_a_bug_that_shouts() {
    let mut tree = ExtentTree::new();
    tree.push(written(10, 10, 5));
    tree.push(written(14, 100, 1));
}

#[test]
#[should_panic(expected = "does not fit")]
fn an_extent_of_nothing_is_refused() {
    ExtentTree::new().insert(written(10, 10, 0));
}

fn bytes_per_extent(tree: &ExtentTree) -> f64 {
    tree.leaves.check();
    tree.heap_bytes() as f64 / tree.len() as f64
}

#[test]
fn an_extent_takes_less_than_32_bytes_in_whatever_order_it_came() {
    // Every other unit, so that nothing joins.
    let unit = |at: u64| written(2 * at, 3 * at, 1);
    let mut tree = ExtentTree::new();
    (0..1_000_000).for_each(|at| tree.push(unit(at)));
    let pushed = bytes_per_extent(&tree);
    assert!(pushed < 17.0, "pushed: {pushed}");

    let mut seed = Seed::from_env("extent tree, memory");
    let mut order: Vec<u64> = (0..200_000).collect();
    seed.shuffle(&mut order);
    let mut tree = ExtentTree::new();
    order.iter().for_each(|&at| tree.insert(unit(at)));
    let random = bytes_per_extent(&tree);
    assert!(random < 20.0, "at random: {random}");
    assert_eq!(tree.len(), 200_000);

    seed.shuffle(&mut order);
    let (gone, left) = order.split_at(150_000);
    gone.iter().for_each(|&at| tree.remove(2 * at..2 * at + 1, &mut |_| {}));
    let thinned = bytes_per_extent(&tree);
    assert!(thinned < 24.0, "after removing: {thinned}");
    eprintln!("bytes per extent: {pushed:.1} pushed, {random:.1} at random, {thinned:.1} thinned");
    left.iter().for_each(|&at| assert_eq!(tree.find(2 * at), Found::Extent(unit(at))));

    let mut order: Vec<u64> = (0..200_000).rev().collect();
    let mut tree = ExtentTree::new();
    order.drain(..).for_each(|at| tree.insert(unit(at)));
    let falling = bytes_per_extent(&tree);
    assert!(falling < 20.0, "falling: {falling}");
}
