use super::*;

fn visits(pass: &mut Pass, blocks: u64) -> Vec<u64> {
    (0..blocks).map(|_| pass.next()).collect()
}

#[test]
fn a_pass_visits_each_block_once() {
    for blocks in [1, 2, 3, 5, 64, 65, 1000, 4095, 4096, 4097] {
        let mut pass = Pass::new(blocks, blocks);
        for _ in 0..3 {
            let mut visited = visits(&mut pass, blocks);
            visited.sort_unstable();
            assert!(visited.into_iter().eq(0..blocks), "{blocks} blocks");
        }
    }
}

#[test]
fn every_pass_has_an_order_of_its_own() {
    let mut pass = Pass::new(1000, 1);
    let (first, second) = (visits(&mut pass, 1000), visits(&mut pass, 1000));
    assert_ne!(first, second);
    assert_eq!(first, visits(&mut Pass::new(1000, 1), 1000));
}

/// In random order the distance between successive blocks is a third of the region on average, and
/// a block follows its neighbour about twice per pass.
#[test]
fn successive_blocks_of_a_pass_are_far_apart() {
    let blocks = 100_000;
    for seed in 0..20 {
        let visited = visits(&mut Pass::new(blocks, seed), blocks);
        let distances = visited.windows(2).map(|pair| pair[0].abs_diff(pair[1]));
        let mean = distances.clone().sum::<u64>() / (blocks - 1);
        assert!((30_000..37_000).contains(&mean), "seed {seed}: mean distance {mean}");
        let neighbours = distances.filter(|distance| *distance == 1).count();
        assert!(neighbours < 20, "seed {seed}: {neighbours} neighbours in a row");
    }
}

#[test]
fn ranks_are_scattered_one_to_one() {
    for blocks in [1, 2, 7, 1000, 1024] {
        let scatter = Scatter::new(blocks, 3);
        let mut places: Vec<u64> = (0..blocks).map(|rank| scatter.apply(rank)).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..blocks), "{blocks} blocks");
    }
}

fn harmonic(ranks: u64, theta: f64) -> f64 {
    (1..=ranks).map(|rank| (rank as f64).powf(-theta)).sum()
}

const DRAWS: u32 = 200_000;

/// Returns the share of draws that fall on the first `hot` ranks.
fn share(hot: u64, mut draw: impl FnMut(&mut Random) -> u64) -> f64 {
    let mut random = Random::new(11, 0);
    let hits = (0..DRAWS).filter(|_| draw(&mut random) < hot).count();
    hits as f64 / f64::from(DRAWS)
}

/// Three standard deviations of a share that is estimated from so many draws are below 0.0034.
#[test]
fn zipf_gives_each_rank_what_the_law_says() {
    for theta in [0.2, 0.9, 0.999, 1.001, 1.1, 2.0, 4.0] {
        for (blocks, hot) in [(1, 1), (2, 1), (100, 1), (10_000, 1), (10_000, 100), (10_000, 5000)]
        {
            let zipf = Zipf::new(blocks, theta);
            let expected = harmonic(hot, theta) / harmonic(blocks, theta);
            let found = share(hot, |random| zipf.draw(random));
            let error = (found - expected).abs();
            assert!(error < 0.004, "theta {theta}, {hot} of {blocks}: {found}, not {expected}");
        }
    }
}

#[test]
fn zipf_stays_inside_at_the_largest_sizes() {
    for theta in [0.01, 0.5, 1.1, 16.0] {
        let zipf = Zipf::new(1 << 52, theta);
        let mut random = Random::new(5, 0);
        assert!((0..10_000).all(|_| zipf.draw(&mut random) < 1 << 52), "theta {theta}");
    }
}

#[test]
fn pareto_gives_the_hot_share_the_rest() {
    for h in [0.1, 0.2, 0.4] {
        let pareto = Pareto::new(10_000, h);
        let found = share((h * 10_000.0) as u64, |random| pareto.draw(random));
        assert!((found - (1.0 - h)).abs() < 0.004, "h {h}: {found}");
    }
}
