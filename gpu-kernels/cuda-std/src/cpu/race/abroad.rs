//! What is known of other clusters: those of a launch that has ended, and those that run.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clock::{Epoch, Known, VectorClock};

/// A cluster of a launch, which is known by its time in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterId {
    pub launch: Epoch,
    /// Which of the grid, x fastest.
    pub cluster: u32,
}

/// What is known of other clusters. Cheap to pass on as it is, also between OS threads.
#[derive(Clone, Default)]
pub struct Abroad {
    /// The launches, and copies, of which all is known: of each queue the last.
    past: VectorClock,
    /// What is known of the clusters of others.
    clusters: Option<Arc<BTreeMap<ClusterId, Known>>>,
}

impl Abroad {
    pub const fn nothing() -> Self {
        Self { past: VectorClock::nothing(), clusters: None }
    }

    /// Whether all of a launch or copy is known.
    #[inline]
    pub fn includes_all_of(&self, launch: Epoch) -> bool {
        self.past.has(launch)
    }

    /// What is known of `cluster`, of whose launch not all is known.
    pub fn of(&self, cluster: ClusterId) -> Option<&Known> {
        self.clusters.as_ref()?.get(&cluster)
    }

    pub fn is_same(&self, other: &Self) -> bool {
        let same_clusters = match (&self.clusters, &other.clusters) {
            (Some(clusters), Some(others)) => Arc::ptr_eq(clusters, others),
            (None, None) => true,
            _ => false,
        };
        same_clusters && self.past.is_same(&other.past)
    }

    pub fn join(&mut self, other: &Self) {
        if self.is_same(other) {
            return;
        }
        self.past.join(&other.past);
        match (&mut self.clusters, &other.clusters) {
            (_, None) => {}
            (clusters @ None, others) => clusters.clone_from(others),
            (Some(clusters), Some(others)) if Arc::ptr_eq(clusters, others) => {}
            (Some(clusters), Some(others)) => {
                let clusters = Arc::make_mut(clusters);
                for (&cluster, known) in others.iter() {
                    clusters.entry(cluster).or_default().join(known);
                }
            }
        }
    }

    /// All of this, and what is known of `cluster`.
    pub fn with(&self, cluster: ClusterId, known: Known) -> Self {
        let mut with = self.clone();
        Arc::make_mut(with.clusters.get_or_insert_default()).insert(cluster, known);
        with
    }

    /// All of a launch or copy is known from now on.
    pub fn learn_all_of(&mut self, launch: Epoch) {
        self.past.learn(launch);
    }

    /// Makes all of it visible to the async proxy.
    pub fn fence_proxy(&mut self) {
        if let Some(clusters) = &mut self.clusters {
            Arc::make_mut(clusters).values_mut().for_each(Known::fence_proxy);
        }
    }

    /// Forgets what is known of clusters of whose launches all is known.
    pub fn tidy(&mut self) {
        let Some(clusters) = &mut self.clusters else { return };
        let is_past = |cluster: &ClusterId| self.past.has(cluster.launch);
        if clusters.keys().any(is_past) {
            Arc::make_mut(clusters).retain(|cluster, _| !is_past(cluster));
        }
        if clusters.is_empty() {
            self.clusters = None;
        }
    }
}
