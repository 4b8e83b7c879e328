//! `far-grid`: pull, travelling queries, and the planner's choice, measured side by side.

use anyhow::Result;
use clap::Args;
use farpage::device::DeviceChoice;
use farpage::far::FarCosts;
use farpage::harness::{Machine, Watch};
use farpage::pairs::{FarGrid, FarGridRow, far_grid, measured_costs};

use super::Outcome;
use super::numbers::whole;
use super::progress::Progress;
use super::table::table;

/// Tokens of the largest batch.
const MOST_TOKENS: u64 = 1 << 28;

/// How much longer the planner's choice may take than the better of the two fixed ones.
const MAX_REGRET: f64 = 0.10;

#[derive(Debug, Args)]
pub struct FarGridArguments {
    /// Batches, as requests x tokens.
    #[arg(
        long,
        value_name = "BATCHxTOKENS",
        value_parser = batch_and_context,
        value_delimiter = ',',
        default_value = "1x1024,1x32768,16x1024,16x4096,64x1024,64x8192"
    )]
    batches: Vec<(usize, u32)>,

    /// Shares of the pages in the peer's memory, in percent.
    #[arg(
        long,
        value_name = "PERCENT",
        value_parser = whole::<usize>(0, 100),
        value_delimiter = ',',
        default_value = "0,2,5,7,10,25,50,100"
    )]
    far: Vec<usize>,

    /// Query heads, and KV heads of 128 elements.
    #[arg(long, value_name = "QUERYxKV", value_parser = batch_and_context, default_value = "64x8")]
    heads: (usize, u32),

    /// Compares every output with the f64 oracle.
    #[arg(long)]
    check: bool,
}

/// Two numbers with an x between them, whose page tables the host can hold.
fn batch_and_context(text: &str) -> Result<(usize, u32), String> {
    let numbers = text.split_once('x').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let is_meant =
        |&(a, b): &(u32, u32)| (1..=MOST_TOKENS).contains(&(u64::from(a) * u64::from(b)));
    let (a, b) = numbers.filter(is_meant).ok_or_else(|| {
        format!(
            "must be two numbers above 0, such as 16x4096, whose product is at most {MOST_TOKENS}"
        )
    })?;
    Ok((a as usize, b))
}

pub fn run(choice: DeviceChoice, arguments: &FarGridArguments) -> Result<Outcome> {
    let machine = Machine::open(choice, None)?;
    println!("{}", machine.describe());
    machine.check(2)?;
    let devices = machine.devices(2)?;
    let (num_qo_heads, num_kv_heads) = arguments.heads;
    let grid = FarGrid {
        batches: arguments.batches.clone(),
        far_percents: arguments.far.clone(),
        heads: (num_qo_heads as u32, num_kv_heads),
        costs: measured_costs(&devices)?,
    };
    println!("{}", costs(&grid.costs));
    let (progress, mut rows) = (Progress::start()?, Vec::new());
    let mut add = |row| rows.push(row);
    let measured = far_grid(&devices, &grid, arguments.check, &progress, &mut add);
    progress.finish();
    if !rows.is_empty() {
        print!("\n{}", report(&rows));
    }
    measured?;
    let is_good = rows.iter().all(|row| row.regret() <= MAX_REGRET) && !progress.is_interrupted();
    Ok(if is_good || !machine.is_cuda() { Outcome::Passed } else { Outcome::Violation })
}

fn costs(costs: &FarCosts) -> String {
    let FarCosts { hbm_gb_s, nvlink_gb_s, start_us, ask_us, .. } = costs;
    format!(
        "costs: near {hbm_gb_s:.0} GB/s, pulled {nvlink_gb_s:.0} GB/s, a decode's start \
         {start_us:.1} µs, asking {ask_us:.1} µs"
    )
}

fn report(rows: &[FarGridRow]) -> String {
    let header = [
        "batch",
        "far",
        "pull µs",
        "predicted",
        "travel µs",
        "predicted",
        "at a gate µs",
        "by events µs",
        "copied µs",
        "planned µs",
        "predicted",
        "travelling",
        "over the best",
    ];
    let cells = |row: &FarGridRow| {
        let us = |us: Option<&f64>| us.map_or("-".to_owned(), |us| format!("{us:.1}"));
        let against = |predicted_us: Option<f64>, us: f64| {
            let share = |predicted_us| 100.0 * (predicted_us / us - 1.0);
            let text = |predicted_us| format!("{predicted_us:.1} ({:+.0} %)", share(predicted_us));
            predicted_us.map_or("-".to_owned(), text)
        };
        let travel_us = row.travel_us.first();
        vec![
            format!("{} x {}", row.batch, row.context),
            format!("{} %", row.far_percent),
            us(Some(&row.pull_us)),
            against(row.pull_predicted_us, row.pull_us),
            us(travel_us),
            travel_us.map_or("-".to_owned(), |&us| against(row.travel_predicted_us, us)),
            us(row.travel_us.get(1)),
            us(row.travel_us.get(2)),
            us(row.copied_us.as_ref()),
            us(Some(&row.planned_us)),
            against(row.planned_predicted_us, row.planned_us),
            format!("{}", row.num_travelling),
            format!("{:+.1} %", 100.0 * row.regret()),
        ]
    };
    table(&header, 2, &rows.iter().map(cells).collect::<Vec<_>>())
}
