//! Random operations on the pool, beside a memory that is really written and copied: what a
//! kernel reads through a page table must be what its requests wrote, until its lease retires.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::kv::policy::{CostAware, Lru};
use crate::kv::{CostModel, Migration, Rates};

const PAGE_SIZE: u32 = 4;

#[derive(Clone, Debug)]
enum Op {
    /// A request with this chain of prefix pages, and some tokens of its own.
    Admit {
        chain: u32,
        pages: u32,
        tokens: u32,
    },
    Append {
        which: usize,
        tokens: u32,
    },
    Release {
        which: usize,
    },
    Lease,
    Retire {
        which: usize,
    },
    Room {
        wanted: u32,
    },
    Promote {
        limit: u32,
        spare: u32,
    },
    Move {
        which: usize,
        rank: u32,
    },
    Copy {
        which: usize,
    },
    Complete {
        which: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..4u32, 0..6u32, 0..7u32)
            .prop_map(|(chain, pages, tokens)| Op::Admit { chain, pages, tokens }),
        4 => (any::<usize>(), 0..6u32).prop_map(|(which, tokens)| Op::Append { which, tokens }),
        3 => any::<usize>().prop_map(|which| Op::Release { which }),
        2 => Just(Op::Lease),
        2 => any::<usize>().prop_map(|which| Op::Retire { which }),
        3 => (0..8u32).prop_map(|wanted| Op::Room { wanted }),
        3 => (0..4u32, 0..3u32).prop_map(|(limit, spare)| Op::Promote { limit, spare }),
        2 => (any::<usize>(), 0..3u32).prop_map(|(which, rank)| Op::Move { which, rank }),
        3 => any::<usize>().prop_map(|which| Op::Copy { which }),
        3 => any::<usize>().prop_map(|which| Op::Complete { which }),
    ]
}

/// What a slot holds: the key of a shared page, or (sequence, position) of a private one.
type Content = (u64, u64);

/// What a kernel was told to read: place and expected content.
type Reads = Vec<(Location, Content)>;

struct Machine {
    pool: KvPool,
    memory: HashMap<Location, Content>,
    /// Per open sequence: its pages' contents and tokens, kept without the pool's help.
    model: HashMap<u64, (Vec<Content>, u32)>,
    order: Vec<u64>,
    next_id: u64,
    leases: Vec<(ReadLease, Reads)>,
    /// Migrations, and whether their copies have run.
    migrations: Vec<(Migration, bool)>,
}

impl Machine {
    fn new(policy: Box<dyn EvictionPolicy>, budgets: Budgets) -> Self {
        Self {
            pool: KvPool::new(budgets, PAGE_SIZE, policy).unwrap(),
            memory: HashMap::new(),
            model: HashMap::new(),
            order: Vec::new(),
            next_id: 0,
            leases: Vec::new(),
            migrations: Vec::new(),
        }
    }

    fn fill(&mut self, id: u64, positions: impl IntoIterator<Item = usize>) {
        let pages = self.pool.sequence(SequenceId(id)).unwrap().pages();
        for position in positions {
            let at = self.pool.location(pages[position]).unwrap();
            self.memory.insert(at, self.model[&id].0[position]);
        }
    }

    fn admit(&mut self, chain: u32, num_pages: u32, tokens: u32) {
        let id = self.next_id;
        self.next_id += 1;
        // Chains 0 and 1 agree on their first two pages.
        let prefix_block = |page_idx| u64::from(if page_idx < 2 { chain & 2 } else { chain });
        let keys: Vec<PageKey> = (0..num_pages)
            .map(|page_idx| PageKey { prefix_block: prefix_block(page_idx), page_idx })
            .collect();
        let contents = keys.iter().map(|key| (key.prefix_block, u64::from(key.page_idx))).collect();
        let hits = self.pool.open(SequenceId(id), &keys).unwrap().total() as usize;
        match self.pool.extend(SequenceId(id), &keys[hits..]) {
            Ok(new) => {
                self.model.insert(id, (contents, num_pages * PAGE_SIZE));
                self.order.push(id);
                self.fill(id, new);
                self.append(id, tokens);
            }
            Err(error) => {
                assert!(matches!(error, PoolError::OutOfPages { .. }), "{error}");
                self.pool.release(SequenceId(id)).unwrap();
            }
        }
    }

    fn append(&mut self, id: u64, tokens: u32) {
        match self.pool.append(SequenceId(id), tokens) {
            Ok(opened) => {
                let (contents, num_tokens) = self.model.get_mut(&id).unwrap();
                *num_tokens += tokens;
                contents.extend(opened.clone().map(|p| (1 << 32 | id, p as u64)));
                self.fill(id, opened);
            }
            Err(error) => assert!(matches!(error, PoolError::OutOfPages { .. }), "{error}"),
        }
    }

    fn register(&mut self, planned: Result<Option<Migration>, PoolError>) {
        self.migrations.extend(planned.unwrap().map(|m| (m, false)));
    }

    fn copy(&mut self, which: usize) {
        let (migration, copied) = &mut self.migrations[which];
        if !std::mem::replace(copied, true) {
            for m in &migration.moves {
                let content = self.memory[&m.from];
                self.memory.insert(m.to, content);
            }
        }
    }

    fn reads(&self) -> Reads {
        let mut reads = Vec::new();
        for (&id, (contents, _)) in &self.model {
            let pages = self.pool.sequence(SequenceId(id)).unwrap().pages();
            let places = pages.iter().map(|&page| self.pool.location(page).unwrap());
            reads.extend(places.zip(contents.iter().copied()));
        }
        reads
    }

    fn check_reads(&self, reads: &Reads) {
        for (at, content) in reads {
            assert_eq!(self.memory.get(at), Some(content), "read at {at}");
        }
    }

    fn run(&mut self, op: &Op) {
        let pick = |which: usize, count: usize| (count > 0).then(|| which % count);
        match *op {
            Op::Admit { chain, pages, tokens } => self.admit(chain, pages, tokens),
            Op::Append { which, tokens } => {
                if let Some(i) = pick(which, self.order.len()) {
                    self.append(self.order[i], tokens);
                }
            }
            Op::Release { which } => {
                if let Some(i) = pick(which, self.order.len()) {
                    let id = self.order.swap_remove(i);
                    self.model.remove(&id);
                    self.pool.release(SequenceId(id)).unwrap();
                }
            }
            Op::Lease => {
                let reads = self.reads();
                self.leases.push((self.pool.lease_reads(), reads));
            }
            Op::Retire { which } => {
                if let Some(i) = pick(which, self.leases.len()) {
                    let (lease, reads) = self.leases.swap_remove(i);
                    self.check_reads(&reads);
                    self.pool.retire(lease).unwrap();
                }
            }
            Op::Room { wanted } => {
                let planned = self.pool.plan_room(wanted);
                self.register(planned);
            }
            Op::Promote { limit, spare } => {
                let planned = self.pool.plan_promotions(limit, spare);
                self.register(planned);
            }
            Op::Move { which, rank } => {
                let pages: Vec<PageId> = self.pool.pages().collect();
                if let Some(i) = pick(which, pages.len()) {
                    match self.pool.plan_move(&[pages[i]], rank) {
                        Ok(planned) => self.register(Ok(planned)),
                        Err(PoolError::NotMovable { .. } | PoolError::OutOfPages { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            Op::Copy { which } => {
                if let Some(i) = pick(which, self.migrations.len()) {
                    self.copy(i);
                }
            }
            Op::Complete { which } => {
                if let Some(i) = pick(which, self.migrations.len()) {
                    self.copy(i);
                    let (migration, _) = self.migrations.swap_remove(i);
                    self.pool.complete(migration.id).unwrap();
                }
            }
        }
    }

    fn check(&self) {
        self.pool.check_invariants().unwrap();
        self.check_reads(&self.reads());
        for (&id, (contents, num_tokens)) in &self.model {
            let sequence = self.pool.sequence(SequenceId(id)).unwrap();
            assert_eq!(sequence.pages().len(), contents.len());
            assert_eq!(sequence.num_tokens(), *num_tokens);
        }
        assert_eq!(self.pool.num_sequences(), self.model.len());
    }

    fn wind_up(&mut self) {
        while !self.order.is_empty() {
            self.run(&Op::Release { which: 0 });
        }
        while !self.migrations.is_empty() {
            self.run(&Op::Complete { which: 0 });
        }
        while !self.leases.is_empty() {
            self.run(&Op::Retire { which: 0 });
        }
        self.check();
        let unused: u64 = (0..3)
            .map(|rank| u64::from(self.pool.num_free(rank) + self.pool.num_evictable(rank)))
            .sum();
        assert_eq!(unused, self.pool.budgets().total_pages());
    }
}

proptest! {
    #[test]
    fn no_operation_sequence_breaks_the_pool(
        cost_aware in any::<bool>(),
        local_pages in 1..8u32,
        peer_pages in 1..5u32,
        host_pages in 1..6u32,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let budgets = Budgets { num_ranks: 2, local_pages, peer_pages, host_pages };
        let policy: Box<dyn EvictionPolicy> = if cost_aware {
            let costs = CostModel { rates: Rates::default(), page_bytes: 4096, page_size: 4 };
            Box::new(CostAware::new(budgets, costs))
        } else {
            Box::<Lru>::default()
        };
        let mut machine = Machine::new(policy, budgets);
        for op in &ops {
            machine.run(op);
            machine.check();
        }
        machine.wind_up();
    }
}
