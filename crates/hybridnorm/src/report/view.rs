//! Runs of a document, grouped by comparability.

use super::data_groups::DataGroup;
use super::document::Document;
use super::run::ReportedRun;
use crate::lab::analysis::PlacementSummary;
use crate::lab::stats::{self, Summary};
use crate::lab::study::record::RunStatus;
use crate::lab::study::{self, Group};

/// Runs of one initialization and depth, with their analysis if there is one.
pub(super) struct View<'a> {
    /// Prefix of its element ids in a page.
    pub(super) key: String,
    /// Empty if there is only one view.
    pub(super) name: String,
    /// Analysis and sentences.
    pub(super) group: Option<&'a Group>,
    /// Runs in the order of the document.
    pub(super) runs: Vec<&'a ReportedRun>,
    /// Placements in the order of the analysis, then of the runs.
    pub(super) placements: Vec<&'a str>,
    /// Learning rates, ascending.
    pub(super) lrs: Vec<f64>,
    /// True if no run of the study is missing. Placements are compared only then.
    pub(super) is_complete: bool,
}

/// Runs of one placement at one learning rate.
pub(super) struct RunsAtLr<'a> {
    /// Runs that finished and have a validation loss, with that loss.
    pub(super) losses: Vec<(&'a ReportedRun, f64)>,
    /// Number of runs.
    pub(super) runs: usize,
    /// Number of diverged runs.
    pub(super) diverged: usize,
    /// Number of runs that had not learned yet.
    pub(super) not_learned: usize,
    /// Number of runs that were eliminated by successive halving.
    pub(super) eliminated: usize,
    /// Number of unfinished runs.
    pub(super) unfinished: usize,
}

/// Groups the runs of a document.
///
/// A single group takes all runs. Of several, each takes those of its initialization and depth; runs without a
/// group form views without analysis.
pub(super) fn views(document: &Document) -> Vec<View<'_>> {
    let mut views = group_runs(document);
    for view in &mut views {
        view.is_complete = document.missing() == 0;
    }
    views
}

fn group_runs(document: &Document) -> Vec<View<'_>> {
    if !document.data_groups.is_empty() {
        return by_data_group(document);
    }
    let mut views: Vec<View> = Vec::new();
    for group in &document.groups {
        let runs = match document.groups.len() {
            1 => document.runs.iter().collect(),
            _ => (document.runs.iter())
                .filter(|run| is_in_group(run, group))
                .collect(),
        };
        views.push(View::new(
            views.len(),
            group.name.clone(),
            Some(group),
            runs,
        ));
    }
    let ungrouped: Vec<&ReportedRun> = match document.groups.len() {
        1 => Vec::new(),
        _ => (document.runs.iter())
            .filter(|run| !document.groups.iter().any(|group| is_in_group(run, group)))
            .collect(),
    };
    let mut settings: Vec<(&Option<String>, Option<usize>)> = Vec::new();
    for run in &ungrouped {
        let setting = (&run.grid_point.init, run.grid_point.depth);
        if !settings.contains(&setting) {
            settings.push(setting);
        }
    }
    for (init, depth) in settings {
        let runs = (ungrouped.iter().copied())
            .filter(|run| (&run.grid_point.init, run.grid_point.depth) == (init, depth))
            .collect();
        views.push(View::new(
            views.len(),
            study::group_name(init.as_deref(), depth),
            None,
            runs,
        ));
    }
    views
}

/// Returns one view per data group.
fn by_data_group(document: &Document) -> Vec<View<'_>> {
    let view = |(position, group): (usize, &DataGroup)| {
        let of_group = document
            .runs
            .iter()
            .filter(|run| run.data_group() == position);
        View::new(position, group.name.clone(), None, of_group.collect())
    };
    document.data_groups.iter().enumerate().map(view).collect()
}

impl<'a> View<'a> {
    fn new(
        position: usize,
        name: String,
        group: Option<&'a Group>,
        runs: Vec<&'a ReportedRun>,
    ) -> Self {
        let summaries = (group.iter())
            .flat_map(|group| &group.analysis.placements)
            .map(|summary| summary.placement.as_str());
        let mut placements = Vec::new();
        for name in summaries.chain(runs.iter().map(|run| run.label())) {
            if !placements.contains(&name) {
                placements.push(name);
            }
        }
        let mut lrs: Vec<f64> = runs.iter().filter_map(|run| run.peak_lr()).collect();
        lrs.sort_by(f64::total_cmp);
        lrs.dedup();
        Self {
            key: format!("g{position}"),
            name,
            group,
            runs,
            placements,
            lrs,
            is_complete: true,
        }
    }

    /// Returns the analysis of a placement.
    pub(super) fn summary(&self, placement: &str) -> Option<&'a PlacementSummary> {
        (self.group?.analysis.placements.iter()).find(|summary| summary.placement == placement)
    }

    /// Returns the runs of a placement.
    pub(super) fn runs_of<'b>(
        &'b self,
        placement: &'b str,
    ) -> impl Iterator<Item = &'a ReportedRun> + use<'a, 'b> {
        (self.runs.iter().copied()).filter(move |run| run.label() == placement)
    }

    /// Returns the runs of a placement at a learning rate.
    pub(super) fn runs_at(&self, placement: &str, lr: f64) -> Vec<&'a ReportedRun> {
        (self.runs_of(placement))
            .filter(|run| run.peak_lr() == Some(lr))
            .collect()
    }

    /// Summarizes the status of the runs of a placement at a learning rate.
    pub(super) fn status_at(&self, placement: &str, lr: f64) -> RunsAtLr<'a> {
        let runs = self.runs_at(placement, lr);
        let has_status =
            |wanted: fn(&RunStatus) -> bool| runs.iter().filter(|run| wanted(&run.status)).count();
        RunsAtLr {
            diverged: has_status(|status| matches!(status, RunStatus::Diverged { .. })),
            not_learned: has_status(|status| matches!(status, RunStatus::NotLearned { .. })),
            eliminated: has_status(|status| matches!(status, RunStatus::Eliminated { .. })),
            unfinished: has_status(|status| matches!(status, RunStatus::Unfinished { .. })),
            runs: runs.len(),
            losses: (runs.iter())
                .filter(|run| matches!(run.status, RunStatus::Finished))
                .filter_map(|run| Some((*run, run.validation_loss?)))
                .filter(|(_, loss)| loss.is_finite())
                .collect(),
        }
    }

    /// Returns the best learning rate of a placement: that of the analysis, or the one with the lowest mean loss among
    /// those at which all runs finished and their number is largest.
    pub(super) fn best_lr(&self, placement: &str) -> Option<f64> {
        if let Some(summary) = self.summary(placement) {
            return summary.best.as_ref().map(|best| best.lr);
        }
        let complete: Vec<(f64, Summary)> = (self.lrs.iter())
            .filter_map(|&lr| {
                let found = self.status_at(placement, lr);
                let summary = found.summary()?;
                (found.losses.len() == found.runs).then_some((lr, summary))
            })
            .collect();
        let max_seeds = complete.iter().map(|(_, summary)| summary.n).max()?;
        (complete.iter())
            .filter(|(_, summary)| summary.n == max_seeds)
            .map(|(lr, summary)| (*lr, summary.mean))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(lr, _)| lr)
    }

    /// Returns the finished runs of a placement at its best learning rate.
    pub(super) fn best_runs(&self, placement: &str) -> Vec<&'a ReportedRun> {
        self.best_lr(placement)
            .map(|lr| self.status_at(placement, lr).losses)
            .unwrap_or_default()
            .into_iter()
            .map(|(run, _)| run)
            .collect()
    }

    /// Returns the throughput of a placement, in tokens per second: from the analysis, or the median of its runs.
    pub(super) fn tokens_per_second(&self, placement: &str) -> Option<f64> {
        if let Some(summary) = self.summary(placement) {
            return summary
                .tokens_per_second
                .filter(|throughput| throughput.is_finite());
        }
        let throughputs = self
            .runs_of(placement)
            .map(|run| run.cost.tokens_per_second);
        stats::median(
            &throughputs
                .filter(|throughput| *throughput > 0.0)
                .collect::<Vec<f64>>(),
        )
    }

    /// True if memory was measured.
    pub(super) fn memory_is_measured(&self) -> bool {
        (self.runs.iter()).any(|run| run.cost.peak_memory_bytes.is_some())
    }

    /// Returns the largest memory use of a placement's runs, in bytes: the measured peak, or the estimate if none of
    /// the view's runs was measured.
    pub(super) fn memory(&self, placement: &str) -> Option<u64> {
        let of: fn(&ReportedRun) -> Option<u64> = match self.memory_is_measured() {
            true => |run| run.cost.peak_memory_bytes,
            false => |run| run.cost.estimated_memory_bytes,
        };
        self.runs_of(placement).filter_map(of).max()
    }

    /// Returns the spikes of loss, gradient norm and update norm of a placement's runs, and the number of its runs
    /// with spikes of the loss.
    pub(super) fn spikes(&self, placement: &str) -> [u64; 4] {
        self.runs_of(placement).fold([0; 4], |sum, run| {
            let spikes = run.spikes;
            [
                sum[0] + spikes.loss,
                sum[1] + spikes.grad_norm,
                sum[2] + spikes.update_norm,
                sum[3] + u64::from(spikes.loss > 0),
            ]
        })
    }
}

impl RunsAtLr<'_> {
    /// Summarizes the losses of the finished runs.
    pub(super) fn summary(&self) -> Option<Summary> {
        let losses: Vec<f64> = self.losses.iter().map(|(_, loss)| *loss).collect();
        Summary::of(&losses)
    }
}

fn is_in_group(run: &ReportedRun, group: &Group) -> bool {
    run.grid_point.init == group.init && run.grid_point.depth == group.depth
}
