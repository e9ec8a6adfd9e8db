//! The line that moves while jobs run, on a terminal and nowhere else.
//!
//! [`Line`] shows the latest [`Progress`]: job, share, rates, time left. It draws at most
//! [`REFRESHES_PER_S`] times a second however often it is told.
#![forbid(unsafe_code)]

use core::time::Duration;
use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::bench::human::{Bandwidth, Iops};
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
    fn hours_appear_when_there_are_some() {
        assert_eq!(clock(Duration::from_secs(7)), "0:07");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
    }
}
