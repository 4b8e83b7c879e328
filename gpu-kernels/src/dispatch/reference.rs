//! Dispatch rank by rank and token by token, and the cases that tests and benches share.

use std::vec;
use std::vec::Vec;

use half::bf16;

use super::contract::ExchangeShape;

/// What a rank brings.
#[derive(Clone, Debug, PartialEq)]
pub struct RankTokens {
    /// `[num_tokens, hidden]`
    pub x: Vec<bf16>,
    /// `[num_tokens, topk]`
    pub topk_ids: Vec<i32>,
    /// `[num_tokens, topk]`
    pub topk_weights: Vec<f32>,
}

/// How tokens choose their experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Routing {
    /// Every expert as often as another, those of a token distinct.
    Uniform,
    /// Expert `i` in proportion to `1 / (i + 1)`, those of a token distinct.
    Zipf,
    /// All tokens to one expert, as often as a token has ids.
    OneExpert(i32),
    /// No token to any.
    Nowhere,
    /// Any ids, repeated ones and -1 among them.
    Ragged,
}

/// Which ranks own at least one expert of a token, ascending.
pub fn ranks_of(shape: &ExchangeShape, ids: &[i32]) -> Vec<u32> {
    let experts_per_rank = shape.num_experts / shape.ep_size;
    let owns = |rank: u32, id: i32| u32::try_from(id).is_ok_and(|id| id / experts_per_rank == rank);
    (0..shape.ep_size).filter(|&rank| ids.iter().any(|&id| owns(rank, id))).collect()
}

impl RankTokens {
    /// Random tokens.
    pub fn random(
        shape: &ExchangeShape,
        num_tokens: u32,
        routing: Routing,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let (num_tokens, topk) = (num_tokens as usize, shape.topk as usize);
        let mut weight_of = || rng.f32();
        let topk_weights = (0..num_tokens * topk).map(|_| weight_of()).collect();
        let draw = Draw::new(shape.num_experts, routing);
        let topk_ids = (0..num_tokens).flat_map(|_| draw.ids(topk, rng)).collect();
        Self { x: random_rows(num_tokens * shape.hidden as usize, rng), topk_ids, topk_weights }
    }

    /// How many there are.
    pub fn num_tokens(&self, shape: &ExchangeShape) -> usize {
        self.topk_ids.len() / shape.topk as usize
    }

    /// Rows that go to `rank`.
    pub fn num_rows_to(&self, shape: &ExchangeShape, rank: u32) -> usize {
        let tokens = self.topk_ids.chunks(shape.topk as usize);
        tokens.filter(|ids| ranks_of(shape, ids).contains(&rank)).count()
    }
}

/// Values of magnitude 0.5 to 1, no sum of which overflows.
pub fn random_rows(len: usize, rng: &mut fastrand::Rng) -> Vec<bf16> {
    let mut rows = vec![bf16::ZERO; len];
    for values in rows.chunks_mut(4) {
        let bits = rng.u64(..);
        for (i, value) in values.iter_mut().enumerate() {
            *value = bf16::from_bits((bits >> (16 * i)) as u16 & 0x807f | 0x3f00);
        }
    }
    rows
}

/// Draws a token's ids.
struct Draw {
    routing: Routing,
    num_experts: u32,
    /// Sums of the weights of the experts up to each.
    cumulative: Vec<f64>,
}

impl Draw {
    fn new(num_experts: u32, routing: Routing) -> Self {
        let weights = (0..num_experts).map(|i| match routing {
            Routing::Zipf => 1.0 / f64::from(i + 1),
            _ => 1.0,
        });
        let sum_up = |sum: &mut f64, weight| {
            *sum += weight;
            Some(*sum)
        };
        Self { routing, num_experts, cumulative: weights.scan(0.0, sum_up).collect() }
    }

    fn ids(&self, topk: usize, rng: &mut fastrand::Rng) -> Vec<i32> {
        match self.routing {
            Routing::OneExpert(id) => vec![id; topk],
            Routing::Nowhere => vec![-1; topk],
            Routing::Ragged => (0..topk).map(|_| rng.i32(-1..self.num_experts as i32)).collect(),
            Routing::Uniform | Routing::Zipf => {
                let mut ids = Vec::with_capacity(topk);
                while ids.len() < topk {
                    let id = self.one(rng);
                    if !ids.contains(&id) || ids.len() >= self.num_experts as usize {
                        ids.push(id);
                    }
                }
                ids
            }
        }
    }

    fn one(&self, rng: &mut fastrand::Rng) -> i32 {
        let at = rng.f64() * self.cumulative.last().copied().unwrap_or(0.0);
        let found = self.cumulative.partition_point(|&sum| sum <= at);
        found.min(self.num_experts as usize - 1) as i32
    }
}

/// What a rank receives: rows and weights of slots that no token fills are not said.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// `[ep_size * num_max_tokens]` rows of `hidden`
    pub x: Vec<Option<Vec<bf16>>>,
    /// `[ep_size, num_max_tokens, topk]`
    pub topk_ids: Vec<i32>,
    /// `[ep_size, num_max_tokens, topk]`
    pub topk_weights: Vec<Option<f32>>,
}

impl Received {
    /// Compares what a rank's memory holds with it, bit by bit.
    ///
    /// # Errors
    /// The first element that is off, with its place and both values.
    pub fn check(
        &self,
        shape: &ExchangeShape,
        x: &[bf16],
        topk_ids: &[i32],
        topk_weights: &[f32],
    ) -> Result<(), std::string::String> {
        let (hidden, topk) = (shape.hidden as usize, shape.topk as usize);
        let place = |slot: usize| {
            let num_max_tokens = shape.num_max_tokens_per_rank as usize;
            std::format!("token {} of rank {}", slot % num_max_tokens, slot / num_max_tokens)
        };
        for (i, (got, want)) in topk_ids.iter().zip(&self.topk_ids).enumerate() {
            if got != want {
                let (place, k) = (place(i / topk), i % topk);
                return Err(std::format!("recv_topk_ids, {place}, id {k}: {got}, must be {want}"));
            }
        }
        for (i, (got, want)) in topk_weights.iter().zip(&self.topk_weights).enumerate() {
            if want.is_some_and(|want| want.to_bits() != got.to_bits()) {
                let (place, k) = (place(i / topk), i % topk);
                return Err(std::format!(
                    "recv_topk_weights, {place}, weight {k}: {got}, must be {want:?}"
                ));
            }
        }
        for (slot, want) in self.x.iter().enumerate() {
            let Some(want) = want else { continue };
            let got = &x[slot * hidden..(slot + 1) * hidden];
            let differs = |i: &usize| got[*i].to_bits() != want[*i].to_bits();
            if let Some(i) = (0..hidden).find(differs) {
                let (place, got, want) = (place(slot), got[i], want[i]);
                return Err(std::format!("recv_x, {place}, element {i}: {got}, must be {want}"));
            }
        }
        Ok(())
    }
}

/// Brings the tokens of all ranks to rank `to`.
pub fn dispatch(shape: &ExchangeShape, ranks: &[RankTokens], to: u32) -> Received {
    let (hidden, topk) = (shape.hidden as usize, shape.topk as usize);
    let experts_per_rank = (shape.num_experts / shape.ep_size) as i32;
    let mut received = Received {
        x: vec![None; shape.num_slots()],
        topk_ids: vec![-1; shape.slot_entries()],
        topk_weights: vec![None; shape.slot_entries()],
    };
    for (source, tokens) in ranks.iter().enumerate() {
        for (token, ids) in tokens.topk_ids.chunks(topk).enumerate() {
            if !ranks_of(shape, ids).contains(&to) {
                continue;
            }
            let slot = source * shape.num_max_tokens_per_rank as usize + token;
            received.x[slot] = Some(tokens.x[token * hidden..(token + 1) * hidden].to_vec());
            for (k, &id) in ids.iter().enumerate() {
                let local_id = id - to as i32 * experts_per_rank;
                if (0..experts_per_rank).contains(&local_id) {
                    received.topk_ids[slot * topk + k] = local_id;
                    received.topk_weights[slot * topk + k] =
                        Some(tokens.topk_weights[token * topk + k]);
                }
            }
        }
    }
    received
}

/// One exchange.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: &'static str,
    /// Its sizes.
    pub shape: ExchangeShape,
    /// Tokens of each rank.
    pub num_tokens: Vec<u32>,
    /// Their experts.
    pub routing: Routing,
}

impl Case {
    /// What the ranks bring.
    pub fn tokens(&self, seed: u64) -> Vec<RankTokens> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let random = |&num| RankTokens::random(&self.shape, num, self.routing, &mut rng);
        self.num_tokens.iter().map(random).collect()
    }
}

/// Edge cases for `ep_size` ranks, smallest first.
pub fn cases(ep_size: u32) -> Vec<Case> {
    let shape = |experts: u32, topk, hidden, num_max_tokens_per_rank| ExchangeShape {
        ep_size,
        num_experts: experts * ep_size,
        topk,
        hidden,
        num_max_tokens_per_rank,
    };
    let case = |name, shape, num_tokens: &dyn Fn(u32) -> u32, routing| Case {
        name,
        shape,
        num_tokens: (0..ep_size).map(num_tokens).collect(),
        routing,
    };
    let last_expert = (2 * ep_size - 1) as i32;
    vec![
        case("a token", shape(1, 1, 8, 1), &|_| 1, Routing::Uniform),
        case("no tokens at all", shape(2, 2, 16, 3), &|_| 0, Routing::Uniform),
        case(
            "tokens on one rank only",
            shape(2, 2, 24, 5),
            &|r| 5 * u32::from(r == 0),
            Routing::Uniform,
        ),
        case("all to the last expert", shape(2, 3, 64, 7), &|_| 7, Routing::OneExpert(last_expert)),
        case("all to the first expert", shape(2, 3, 64, 7), &|r| r, Routing::OneExpert(0)),
        case("nobody anywhere", shape(2, 4, 72, 6), &|_| 6, Routing::Nowhere),
        case("repeated ids, none, and tails", shape(3, 5, 136, 9), &|r| 9 - r, Routing::Ragged),
        case("distinct experts", shape(8, 8, 1024, 12), &|r| 12 - 3 * (r % 3), Routing::Uniform),
        case("popular experts", shape(16, 8, 2048, 10), &|_| 10, Routing::Zipf),
        case("rows of two pieces", shape(4, 2, 8192, 3), &|_| 3, Routing::Uniform),
    ]
}

/// More tokens for each of a few blocks than a ring has stages.
pub fn many_tokens(ep_size: u32) -> Case {
    let shape = ExchangeShape {
        ep_size,
        num_experts: 3 * ep_size,
        topk: 2,
        hidden: 16,
        num_max_tokens_per_rank: 110,
    };
    let num_tokens = (0..ep_size).map(|rank| 110 - 7 * rank).collect();
    Case { name: "many tokens", shape, num_tokens, routing: Routing::Ragged }
}
