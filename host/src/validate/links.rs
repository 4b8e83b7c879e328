//! When migrations would be done: one queue per direction, each at its link's rate.

use std::collections::HashMap;

use crate::kv::{Budgets, CostModel, Migration};

/// Virtual time at which each direction's queue is empty.
#[derive(Debug, Default)]
pub(super) struct Links {
    idle_from_us: HashMap<(u32, u32), f64>,
}

impl Links {
    /// Queues a migration's copies. Returns when the last of them ends, µs.
    pub fn send(
        &mut self,
        migration: &Migration,
        now_us: f64,
        budgets: &Budgets,
        costs: &CostModel,
    ) -> f64 {
        let mut end_us = now_us;
        for group in migration.copy_groups() {
            let (from, to) = (group.from_rank, group.to_rank);
            let idle_from_us = self.idle_from_us.entry((from, to)).or_insert(0.0);
            let page_us = costs.move_us(budgets.tier(from), budgets.tier(to));
            let start_us = idle_from_us.max(now_us) + costs.rates.launch_us;
            *idle_from_us = start_us + group.to_slots.len() as f64 * page_us;
            end_us = end_us.max(*idle_from_us);
        }
        end_us
    }
}
