//! The report as one HTML page.

use std::fmt::Write;

use super::plots::STYLE as PLOT_STYLE;
use super::svg::{Svg, escape};
use super::table::Table;
use super::{Counts, INTERRUPTED, RATIO_NOTE, numbers, tables};
use crate::harness::results::RunResults;

const STYLE: &str = include_str!("page.css");

pub(super) fn page(run: &RunResults, plots: &[Svg]) -> String {
    let manifest = &run.manifest;
    let devices = numbers::devices(&manifest.devices);
    let mut page = Page::default();
    page.push(format_args!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{0}, {1} · Farpage</title>\n<style>\n{STYLE}{PLOT_STYLE}</style>\n</head>\n\
         <body>\n<header>\n<p class=\"eyebrow\">Farpage run</p>\n<h1>{2}</h1>\n\
         <p class=\"lead\">{1} · commit {3}</p>\n\
         <p class=\"command\"><code>{4}</code></p>\n",
        escape(&manifest.hardware),
        escape(&manifest.started),
        escape(&devices),
        escape(&numbers::commit(&manifest.commit, manifest.dirty)),
        escape(&tables::command(manifest)),
    ));
    page.counts(Counts::of(run));
    page.push(format_args!("</header>\n<main>\n"));
    if run.interrupted {
        page.push(format_args!("<p class=\"warning\">{INTERRUPTED}</p>\n"));
    }
    page.section("not-measured", "Not measured", &tables::not_measured(run));
    for plot in plots {
        page.plot(plot);
    }
    for target in tables::targets(run) {
        page.target(&target);
    }
    page.section("ceilings", "Ceilings", &tables::ceilings(run));
    page.section("machine", "Machine and run", &tables::manifest(manifest));
    page.push(format_args!(
        "</main>\n<footer><p>{}</p></footer>\n</body>\n</html>\n",
        escape(RATIO_NOTE)
    ));
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn push(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.text.write_fmt(arguments).expect("a string takes all");
    }

    fn counts(&mut self, counts: Counts) {
        let Counts { measured, skipped, failed } = counts;
        self.push(format_args!("<ul class=\"counts\">"));
        for (count, word) in [(measured, "measured"), (skipped, "skipped"), (failed, "failed")] {
            let class = if count == 0 { "none" } else { word };
            self.push(format_args!("<li class=\"{class}\"><strong>{count}</strong> {word}</li>"));
        }
        self.push(format_args!("</ul>\n"));
    }

    fn section(&mut self, id: &str, title: &str, table: &Table) {
        if !table.is_empty() {
            self.push(format_args!(
                "<section id=\"{id}\">\n<h2>{title}</h2>\n{}</section>\n",
                table.html()
            ));
        }
    }

    fn plot(&mut self, plot: &Svg) {
        self.push(format_args!(
            "<section>\n<h2>{}</h2>\n<figure class=\"scroll\">\n{}</figure>\n</section>\n",
            escape(plot.title()),
            plot.inline()
        ));
    }

    fn target(&mut self, target: &tables::Target<'_>) {
        let (baseline, optimized) = &target.sides;
        self.push(format_args!(
            "<section>\n<h2><code>{}</code></h2>\n\
             <p class=\"sides\"><b>baseline</b> {} <b>optimized</b> {}</p>\n{}\
             <details><summary>Work, checks and conditions</summary>\n{}</details>\n</section>\n",
            escape(target.name),
            escape(baseline),
            escape(optimized),
            target.results.html(),
            target.details.html()
        ));
    }
}
