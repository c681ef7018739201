//! Progress of a running query.
//!
//! Input: a running physical plan. Output: rows read so far and their expected total, drawn on stderr for long
//! queries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::common::stats::Precision;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use indicatif::ProgressBar;

use super::super::{Terminal, thousands};

/// Delay before progress is drawn; most queries end earlier.
const PATIENCE: Duration = Duration::from_secs(2);

/// The progress bar of one query, removed on drop.
pub struct Progress {
    plan: Arc<dyn ExecutionPlan>,
    terminal: Terminal,
    began: Instant,
    bar: Option<ProgressBar>,
    total: Option<u64>,
    /// Time of the next update. The metrics of a plan with many files are expensive to sum, so the interval grows
    /// with their cost.
    next: Instant,
}

impl Progress {
    pub fn new(plan: &Arc<dyn ExecutionPlan>, terminal: &Terminal) -> Self {
        let (plan, terminal) = (Arc::clone(plan), terminal.clone());
        let began = Instant::now();
        Self { plan, terminal, began, bar: None, total: None, next: began + PATIENCE }
    }

    /// Redraws the bar if an update is due.
    pub fn tick(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        if self.bar.is_none() {
            self.total = expected(&self.plan).filter(|total| *total > 0);
            self.bar = Some(self.terminal.rows(self.total, self.began.elapsed()));
        }
        let Some(bar) = self.bar.as_ref().filter(|bar| !bar.is_hidden()) else { return };
        let read = read(&self.plan);
        match self.total {
            Some(total) => {
                bar.set_position(read.min(total));
                bar.set_message(format!("{} of {} rows", thousands(read), thousands(total)));
            }
            None => bar.set_message(format!("{} rows read", thousands(read))),
        }
        bar.tick();
        self.next = Instant::now() + 20 * now.elapsed();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Rows produced by the sources of a plan so far.
fn read(plan: &Arc<dyn ExecutionPlan>) -> u64 {
    let children = plan.children();
    if children.is_empty() {
        return plan.metrics().and_then(|metrics| metrics.output_rows()).unwrap_or(0) as u64;
    }
    children.into_iter().map(read).sum()
}

/// Total rows of the sources, if all of them know their number.
fn expected(plan: &Arc<dyn ExecutionPlan>) -> Option<u64> {
    let children = plan.children();
    if children.is_empty() {
        return match StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new()).ok()?.num_rows {
            Precision::Exact(rows) | Precision::Inexact(rows) => Some(rows as u64),
            Precision::Absent => None,
        };
    }
    children.into_iter().map(expected).sum()
}
