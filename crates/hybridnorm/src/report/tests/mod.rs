//! Tests of complete reports on synthetic studies.

mod hostile;
mod markup;
mod random;
mod synthetic;

use serde_json::Value;

use super::document::Document;
use super::escape::escape;
use super::format::{difference, learning_rate, loss, mean_sd, probability, ratio, throughput};
use super::run::ReportedRun;
use super::view::views;
use super::{html, markdown};
use crate::lab::analysis;
use crate::lab::probe::{DepthGrowth, ProbePlacement, ProbeReport, ProbeStep};
use crate::lab::study::Group;
use crate::lab::study::record::{self, RunStatus};
use crate::train::{layers, spikes};

/// Returns the markup of a page, without the content of its scripts.
fn markup_of(page: &str) -> String {
    let mut text = String::new();
    let mut rest = page;
    while let Some(start) = rest.find("<script") {
        let open = start + rest[start..].find('>').unwrap() + 1;
        text.push_str(&rest[..open]);
        rest = &rest[open + rest[open..].find("</script>").unwrap()..];
    }
    text + rest
}

/// Returns the JSON of the script with an id.
fn json_of(page: &str, id: &str) -> Value {
    let start = format!("<script type=\"application/json\" id=\"{id}\">");
    let (_, rest) = page.split_once(&start).unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

/// Returns documents with missing parts.
fn degenerate() -> Vec<(&'static str, Document)> {
    let with = |change: &dyn Fn(&mut Document)| {
        let mut document = synthetic::study();
        change(&mut document);
        document
    };
    vec![
        ("no groups", with(&|document| document.groups.clear())),
        (
            "nothing",
            with(&|document| {
                document.groups.clear();
                document.runs.clear();
            }),
        ),
        (
            "groups without runs",
            with(&|document| document.runs.clear()),
        ),
        (
            "one run",
            with(&|document| {
                document.groups.clear();
                document.runs.truncate(1);
            }),
        ),
        (
            "no run finished",
            with(&|document| {
                document.groups.clear();
                document
                    .runs
                    .retain(|run| !matches!(run.status, RunStatus::Finished));
            }),
        ),
        (
            "no records",
            with(&|document| document.runs.iter_mut().for_each(clear_records)),
        ),
        (
            "values that are not finite",
            with(&|document| document.runs.iter_mut().for_each(make_not_finite)),
        ),
        ("probe", synthetic::probe()),
        ("two groups", synthetic::two_groups()),
    ]
}

fn clear_records(run: &mut ReportedRun) {
    run.layers.clear();
    run.curve = record::Curve::default();
    run.validation.clear();
    run.cost.peak_memory_bytes = None;
}

fn make_not_finite(run: &mut ReportedRun) {
    run.validation_loss = run.validation_loss.map(|_| f64::NAN);
    run.train_loss = Some(f64::INFINITY);
    run.max_grad_norm = f64::INFINITY;
    run.curve.loss.fill(f32::NAN);
    run.curve.grad_norm.fill(f32::INFINITY);
    run.cost.tokens_per_second = f64::NAN;
    for block in run.layers.iter_mut().flat_map(|record| &mut record.blocks) {
        block.residual = layers::ActivationStats::default();
        block
            .parameters
            .grad_norm
            .values_mut()
            .for_each(|norm| *norm = None);
    }
}

#[test]
fn every_page_is_well_formed() {
    let mut documents = degenerate();
    documents.push(("study", synthetic::study()));
    for (name, document) in documents {
        let page = html(&document);
        let text = markup_of(&page);
        markup::check(&text).unwrap_or_else(|problem| panic!("{name}: {problem}"));
        for wrong in ["NaN", ">inf", "null", "None", "Some("] {
            assert!(!text.contains(wrong), "{name}: {wrong}");
        }
        let forbidden = |c: char| c.is_control() && !matches!(c, '\n' | '\t' | '\r');
        assert!(!page.contains(forbidden), "{name}: a control character");
    }
}

#[test]
fn charts_and_controls_have_their_elements() {
    for (name, document) in degenerate() {
        let page = html(&document);
        let ids = markup::attributes(&markup_of(&page), "id");
        let charts = json_of(&page, "charts");
        for chart in charts["charts"].as_array().unwrap() {
            let id = chart["id"].as_str().unwrap();
            assert!(ids.iter().any(|known| known == id), "{name}: {id}");
            assert!(
                !chart["views"].as_array().unwrap().is_empty(),
                "{name}: {id}"
            );
        }
        for attribute in ["data-charts", "data-targets", "for", "aria-labelledby"] {
            for targets in markup::attributes(&markup_of(&page), attribute) {
                for target in targets.split(' ') {
                    assert!(ids.iter().any(|known| known == target), "{name}: {target}");
                }
            }
        }
    }
    let page = html(&synthetic::study());
    // Losses, forest, tolerance, three curves, 8 heat maps, speed and memory.
    let charts = json_of(&page, "charts");
    assert_eq!(charts["charts"].as_array().unwrap().len(), 16);
}

#[test]
fn drop_downs_have_one_option_per_view() {
    let page = html(&synthetic::two_groups());
    let charts = json_of(&page, "charts");
    let views = |id: &str| {
        let charts = charts["charts"].as_array().unwrap();
        let chart = charts.iter().find(|chart| chart["id"] == id).unwrap();
        chart["views"].as_array().unwrap().len()
    };
    for key in ["g0", "g1"] {
        let (_, rest) = page
            .split_once(&format!("<select id=\"{key}-curves-choice\""))
            .unwrap();
        let (select, _) = rest.split_once("</select>").unwrap();
        assert_eq!(
            select.matches("<option").count(),
            1 + synthetic::LEARNING_RATES.len()
        );
        assert_eq!(
            views(&format!("{key}-loss-curves")),
            1 + synthetic::LEARNING_RATES.len()
        );
        assert_eq!(
            views(&format!("{key}-grad_norm-curves")),
            1 + synthetic::LEARNING_RATES.len()
        );
    }
}

#[test]
fn the_page_has_no_external_resources() {
    let mut document = synthetic::study();
    document.probe = Some(synthetic::probe_report());
    let page = html(&document);
    assert!(page.contains("default-src 'none'"));
    // The library is the only script with URLs; the policy blocks their use.
    let (before, rest) = page.split_once("<script>").unwrap();
    let (library, after) = rest.split_once("</script>").unwrap();
    assert!(library.contains("plotly.js v3"));
    assert!(!library.contains("tex-svg") && library.len() < 5_000_000);
    for own in [before, after] {
        for source in [
            "http://", "https://", "src=", "@import", "url(", "//cdn", "<link", "<base",
        ] {
            assert!(!own.contains(source), "{source}");
        }
    }
    for target in markup::attributes(&markup_of(&page), "href") {
        assert!(target.starts_with('#'), "{target}");
    }
}

#[test]
fn html_is_deterministic() {
    let document = synthetic::two_groups();
    let json = serde_json::to_string(&document).unwrap();
    let again: Document = serde_json::from_str(&json).unwrap();
    assert_eq!(html(&document), html(&again));
    assert_eq!(markdown(&document), markdown(&again));
}

#[test]
fn page_embeds_the_document() {
    let mut document = synthetic::study();
    document.title = "</script><!-- & \u{2028}".to_owned();
    document.probe = Some(synthetic::probe_report());
    let back: Document = serde_json::from_value(json_of(&html(&document), "document")).unwrap();
    assert!(back == document);
}

#[test]
fn text_of_the_document_is_escaped() {
    const EVIL: &str = "<img src=x onerror=alert(1)>\"'&</script></pre></td><!--";
    let mut document = synthetic::two_groups();
    let evil = |text: &mut String| text.insert_str(text.len() / 2, EVIL);
    document.probe = Some(synthetic::probe_report());
    for text in [
        &mut document.title,
        &mut document.created,
        &mut document.version,
    ] {
        evil(text);
    }
    for group in &mut document.groups {
        evil(&mut group.name);
        evil(&mut group.analysis.rules.baseline);
        group.summary.iter_mut().for_each(evil);
        group.sentences.iter_mut().for_each(evil);
        for summary in &mut group.analysis.placements {
            evil(&mut summary.placement);
            summary.no_comparison_reason = Some(EVIL.to_owned());
        }
    }
    for run in &mut document.runs {
        let run = &mut run.record;
        for text in [
            &mut run.id,
            &mut run.grid_point.placement,
            &mut run.config,
            &mut run.placement_hash,
            &mut run.equations,
            &mut run.data,
        ] {
            evil(text);
        }
        if let RunStatus::Diverged { reason, .. } = &mut run.status {
            evil(reason);
        }
    }
    for placement in document
        .probe
        .iter_mut()
        .flat_map(|probe| &mut probe.placements)
    {
        evil(&mut placement.placement);
        evil(&mut placement.placement_hash);
        evil(&mut placement.equations);
    }
    let page = html(&document);
    let text = markup_of(&page);
    markup::check(&text).unwrap();
    assert!(!text.contains("<img") && !text.contains("<!--"));
    assert_eq!(page.matches("</script>").count(), 4);
    let charts = json_of(&page, "charts").to_string();
    assert!(charts.contains("&lt;img") && !charts.contains("<img"));
    // Code is fenced; elsewhere the tag is escaped.
    let markdown = markdown(&document);
    let outside = markdown.split("```").step_by(2);
    assert!(outside.into_iter().all(|part| !part.contains("<img")));
}

#[test]
fn tables_have_the_numbers_of_the_document() {
    let document = synthetic::study();
    let (page, text) = (markup_of(&html(&document)), markdown(&document));
    let group = &document.groups[0];
    let mut expected = Vec::new();
    for summary in &group.analysis.placements {
        let best = summary.best.as_ref().unwrap();
        expected.extend([learning_rate(best.lr), mean_sd(&best.loss)]);
        expected.push(throughput(summary.tokens_per_second.unwrap()));
        expected.push(loss(summary.lr_sensitivity.unwrap()));
        expected.extend(summary.largest_stable_lr.map(learning_rate));
        expected.extend(
            summary
                .learning_rates
                .iter()
                .filter_map(|lr_summary| Some(mean_sd(&lr_summary.loss?))),
        );
        if let Some(comparison) = &summary.comparison {
            let found = comparison.difference;
            expected.extend([found.mean, found.low, found.high].map(difference));
            expected.push(probability(comparison.p_adjusted));
            expected.extend(
                [comparison.compute_gain, comparison.effective_speedup].map(|x| ratio(x.unwrap())),
            );
        }
    }
    for number in &expected {
        assert!(page.contains(&escape(number)), "{number}");
        let number = number.replace('<', "&lt;");
        assert!(text.contains(&number), "{number} in Markdown");
    }
    for sentence in group.summary.iter().chain(&group.sentences) {
        assert!(page.contains(&escape(sentence)), "{sentence}");
    }
    for run in &document.runs {
        for text in [&run.id, &run.data, &run.placement_hash] {
            assert!(page.contains(text.as_str()), "{text}");
        }
        assert!(page.contains(&escape(run.equations.trim_end())));
        if let Some(found) = run.validation_loss {
            assert!(page.contains(&loss(found)));
        }
    }
    assert!(page.contains(&escape(document.runs[0].config.trim_end())));
    let rules = &group.analysis.rules;
    for constant in [rules.irreducible_loss, rules.compute_exponent] {
        assert!(page.contains(&constant.to_string()) && text.contains(&constant.to_string()));
    }
}

#[test]
fn diverged_runs_are_crosses_and_in_tables() {
    let document = synthetic::study();
    let page = html(&document);
    let charts = json_of(&page, "charts");
    let losses = &charts["charts"][0]["views"][0];
    let top = losses["layout"]["yaxis"]["range"][1].as_f64().unwrap();
    let diverged_markers: usize = (losses["data"].as_array().unwrap().iter())
        .filter(|trace| trace["marker"]["symbol"] == "x-thin-open")
        .map(|trace| {
            let heights = trace["y"].as_array().unwrap();
            assert!(heights.iter().all(|height| height.as_f64() == Some(top)));
            heights.len()
        })
        .sum();
    let mut cells: Vec<(&str, String)> = (document.runs.iter())
        .filter(|run| matches!(run.status, RunStatus::Diverged { .. }))
        .map(|run| {
            (
                run.grid_point.placement.as_str(),
                learning_rate(run.grid_point.lr),
            )
        })
        .collect();
    cells.dedup();
    assert!(!cells.is_empty());
    assert_eq!(diverged_markers, cells.len());
    assert!(page.contains("of 3 diverged</small>"));
    assert!(markdown(&document).contains("of 3 diverged"));
}

#[test]
fn each_placement_has_its_own_color_and_shape() {
    let mut document = synthetic::study();
    document.probe = Some(synthetic::probe_report());
    let charts = json_of(&html(&document), "charts");
    let mut colors: Vec<(String, String)> = Vec::new();
    let mut dashes = Vec::new();
    for chart in charts["charts"].as_array().unwrap() {
        for trace in chart["views"][0]["data"].as_array().unwrap() {
            let Some(group) = trace["legendgroup"].as_str() else {
                continue;
            };
            let color = trace["line"]["color"]
                .as_str()
                .or(trace["marker"]["color"].as_str());
            colors.push((group.to_owned(), color.unwrap().to_owned()));
            if let (Some(dash), Some(symbol)) = (
                trace["line"]["dash"].as_str(),
                trace["marker"]["symbol"].as_str(),
            ) {
                dashes.push((dash.to_owned(), symbol.to_owned()));
            }
        }
    }
    colors.sort();
    colors.dedup();
    assert_eq!(colors.len(), synthetic::PLACEMENTS.len());
    dashes.sort();
    dashes.dedup();
    assert_eq!(dashes.len(), synthetic::PLACEMENTS.len());
}

#[test]
fn heat_maps_of_a_metric_share_their_color_scale() {
    let charts = json_of(&html(&synthetic::study()), "charts");
    let mut ends = Vec::new();
    for chart in charts["charts"].as_array().unwrap() {
        let map = &chart["views"][0]["data"][0];
        if map["type"] == "heatmap" {
            assert_eq!(map["z"].as_array().unwrap().len(), 6);
            ends.push((map["zmin"].as_f64(), map["zmax"].as_f64()));
        }
    }
    assert_eq!(ends.len(), synthetic::PLACEMENTS.len());
    ends.dedup();
    assert_eq!(ends.len(), 1);
}

#[test]
fn each_group_shows_only_its_runs() {
    let document = synthetic::two_groups();
    let views = views(&document);
    assert_eq!(views.len(), 2);
    for view in &views {
        assert_eq!(view.runs.len(), document.runs.len() / 2);
        assert!(
            view.runs
                .iter()
                .all(|run| run.grid_point.init == view.group.unwrap().init)
        );
    }
    let page = markup_of(&html(&document));
    // Under each of eight headings.
    assert_eq!(page.matches("<h3>initialization own</h3>").count(), 8);
    let mut orphans = document.clone();
    orphans.groups.remove(0);
    orphans.groups.push(orphans.groups[0].clone());
    orphans.groups[1].init = Some("unknown".to_owned());
    let page = markup_of(&html(&orphans));
    assert!(page.contains("<h3>initialization megatron</h3>"));
    assert!(page.contains("These runs were not compared."));
}

#[test]
fn markdown_tables_are_regular_and_have_no_images() {
    let mut documents = degenerate();
    documents.push(("study", synthetic::study()));
    for (name, document) in documents {
        let text = markdown(&document);
        assert!(!text.contains("![") && !text.contains("<img"), "{name}");
        assert_eq!(
            text.matches("<details>").count(),
            text.matches("</details>").count()
        );
        let mut columns = 0;
        for line in text.lines() {
            if !line.starts_with("| ") {
                columns = 0;
                continue;
            }
            let found = line.replace("\\|", "").matches('|').count();
            assert!(columns == 0 || columns == found, "{name}: {line}");
            columns = found;
        }
        for wrong in ["NaN", " inf", "None", "Some("] {
            assert!(!text.contains(wrong), "{name}: {wrong}");
        }
    }
    assert!(markdown(&synthetic::study()).contains("<summary>Equations</summary>"));
}

#[test]
fn a_probe_alone_has_its_charts_and_growth() {
    let document = synthetic::probe();
    let page = html(&document);
    let charts = json_of(&page, "charts");
    let charts = charts["charts"].as_array().unwrap();
    assert_eq!(charts.len(), 5);
    for chart in charts {
        assert_eq!(chart["views"].as_array().unwrap().len(), 2);
        assert_eq!(
            chart["views"][0]["data"].as_array().unwrap().len(),
            synthetic::PLACEMENTS.len()
        );
        assert_eq!(chart["views"][0]["layout"]["yaxis"]["type"], "log");
    }
    let growth = document.probe.unwrap().placements[1].measured_steps[0].growth;
    let grad = super::format::compact(growth.grad.unwrap().into());
    assert!(markup_of(&page).contains(&format!("<td class=\"n\">{grad}</td>")));
    assert!(!page.contains("id=\"verdict\"") && !page.contains("id=\"everything\""));
}
