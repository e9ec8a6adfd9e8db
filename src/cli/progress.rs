//! The line that moves while jobs run, on a terminal and nowhere else.
//!
//! [`Line`] shows the latest [`Progress`]: job, share, rates, time left. It draws at most
//! [`REFRESHES_PER_S`] times a second however often it is told.
#![forbid(unsafe_code)]

use core::time::Duration;
use std::io::{self, IsTerminal};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::bench::human::{Amount, Bandwidth, Iops};
use crate::bench::job::PerDirection;
use crate::bench::runner::Progress;

/// How often the line is drawn at most.
const REFRESHES_PER_S: u8 = 5;

/// One line on stderr that is drawn over and over, or nothing.
pub(super) struct Line(Option<ProgressBar>);

impl Line {
    /// Makes the line if somebody can see it and wants to.
    pub(super) fn on_terminal(quiet: bool) -> Self {
        let seen = io::stderr().is_terminal() && !quiet;
        Self(seen.then(bar))
    }

    /// Shows how far the run has come.
    pub(super) fn show(&self, progress: &Progress) {
        if let Some(bar) = &self.0 {
            bar.set_message(text(progress));
        }
    }

    /// Removes the line, so that what follows stands alone.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The line of a copy.
pub(super) struct CopyLine {
    line: Line,
    name: String,
    total: Option<u64>,
    since: Instant,
}

impl CopyLine {
    /// Makes the line of a copy of `total` bytes, if somebody can see it.
    pub(super) fn of(name: &str, total: Option<u64>) -> Self {
        let line = Line::on_terminal(false);
        Self { line, name: name.to_owned(), total, since: Instant::now() }
    }

    /// Shows how many bytes were copied.
    pub(super) fn show(&self, done: u64) {
        if let Line(Some(bar)) = &self.line {
            let (time, total) = (self.since.elapsed(), self.total);
            bar.set_message(copy_text(&self.name, done, total, time));
        }
    }
}

impl Drop for CopyLine {
    /// Removes the line, so that what follows stands alone, a failure too.
    fn drop(&mut self) {
        self.line.clear();
    }
}

/// The line of something whose share is known and whose size is not.
pub(super) struct ShareLine {
    line: Line,
    name: String,
    since: Instant,
}

impl ShareLine {
    /// Makes the line, if somebody can see it.
    pub(super) fn of(name: &str) -> Self {
        Self { line: Line::on_terminal(false), name: name.to_owned(), since: Instant::now() }
    }

    /// Shows how much is done, from 0 to 1.
    pub(super) fn show(&self, share: f64) {
        if let Line(Some(bar)) = &self.line {
            bar.set_message(share_text(&self.name, share, self.since.elapsed()));
        }
    }
}

impl Drop for ShareLine {
    /// Removes the line, so that what follows stands alone, a failure too.
    fn drop(&mut self) {
        self.line.clear();
    }
}

/// Cells of the bar.
const CELLS: usize = 20;

fn share_text(name: &str, share: f64, time: Duration) -> String {
    let full = (share * CELLS as f64) as usize;
    let bar = format!("[{:<CELLS$}]", "#".repeat(full.min(CELLS)));
    let mut parts = vec![name.to_owned(), bar, format!("{:3.0} %", share * 100.0)];
    let left = Duration::try_from_secs_f64(time.as_secs_f64() * (1.0 - share) / share);
    parts.extend(left.ok().map(|left| format!("{} left", clock(left))));
    parts.join("  ")
}

fn copy_text(name: &str, done: u64, total: Option<u64>, time: Duration) -> String {
    let rate = done as f64 / time.as_secs_f64().max(0.001);
    let mut parts = vec![name.to_owned()];
    match total {
        Some(total) => {
            let percent = done as f64 / total.max(1) as f64 * 100.0;
            parts.push(format!("{percent:3.0} %"));
        }
        None => parts.push(Amount(done).to_string()),
    }
    parts.push(format!("{:>11}", Bandwidth(rate)));
    if let Some(left) = total.map(|total| total.saturating_sub(done)).filter(|_| rate > 0.0) {
        parts.push(format!("{} left", clock(Duration::from_secs_f64(left as f64 / rate))));
    }
    parts.join("  ")
}

fn bar() -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(REFRESHES_PER_S);
    let style = ProgressStyle::with_template("{wide_msg}").expect("the template is a constant");
    ProgressBar::with_draw_target(None, target).with_style(style)
}

fn text(progress: &Progress) -> String {
    let Progress { job, fraction, remaining, iops, bytes_per_s, errors, .. } = progress;
    let mut parts = vec![job.clone()];
    parts.extend(fraction.map(|fraction| format!("{:3.0} %", fraction * 100.0)));
    parts.push(format!("{:>11}", Iops(sum(iops))));
    parts.push(format!("{:>11}", Bandwidth(sum(bytes_per_s))));
    parts.extend(remaining.map(|left| format!("{} left", clock(left))));
    parts.extend((*errors > 0).then(|| format!("{errors} errors")));
    parts.join("  ")
}

fn sum(rates: &PerDirection<f64>) -> f64 {
    rates.iter().map(|(_, rate)| rate).sum()
}

/// Writes a time as it stands on a clock: `1:02:03`, `0:07`.
fn clock(time: Duration) -> String {
    let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
    match minutes / 60 {
        0 => format!("{minutes}:{seconds:02}"),
        hours => format!("{hours}:{:02}:{seconds:02}", minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_sums_directions_and_leaves_out_what_is_not_known() {
        let mut progress = Progress {
            job: "mix".into(),
            elapsed: Duration::from_secs(4),
            fraction: Some(0.425),
            remaining: Some(Duration::from_secs(67)),
            iops: PerDirection { read: 700_000.0, write: 300_000.0, trim: 0.0 },
            bytes_per_s: PerDirection { read: 3e9, write: 1e9, trim: 0.0 },
            errors: 2,
        };
        let expected = "mix   42 %  1.00 M IOPS   3.73 GiB/s  1:07 left  2 errors";
        assert_eq!(text(&progress), expected);
        (progress.fraction, progress.remaining, progress.errors) = (None, None, 0);
        assert_eq!(text(&progress), "mix  1.00 M IOPS   3.73 GiB/s");
    }

    #[test]
    fn a_copy_says_how_much_is_left_where_that_is_known() {
        let second = Duration::from_secs(1);
        let known = copy_text("a", 1 << 20, Some(4 << 20), second);
        assert_eq!(known, "a   25 %   1.00 MiB/s  0:03 left");
        assert_eq!(copy_text("a", 1 << 20, None, second), "a  1.00 MiB   1.00 MiB/s");
        assert_eq!(copy_text("a", 0, Some(0), second), "a    0 %        0 B/s");
    }

    #[test]
    fn a_share_is_a_bar_and_the_time_that_is_left_once_that_is_known() {
        let text = |share| share_text("overwrite", share, Duration::from_secs(30));
        assert_eq!(text(0.0), "overwrite  [                    ]    0 %");
        assert_eq!(text(0.25), "overwrite  [#####               ]   25 %  1:30 left");
        assert_eq!(text(1.0), "overwrite  [####################]  100 %  0:00 left");
    }

    #[test]
    fn hours_appear_when_there_are_some() {
        assert_eq!(clock(Duration::from_secs(7)), "0:07");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
    }
}
