//! What threads tell each other through words of device memory.

use super::abroad::{Abroad, ClusterId};
use super::clock::ThreadClock;

/// How far an operation on device memory reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The threads of its device.
    Gpu,
    /// Those of every device, and the host.
    System,
}

/// The same for the threads of one device, and for all.
#[derive(Clone, Default)]
struct Scoped {
    gpu: Abroad,
    system: Abroad,
}

impl Scoped {
    fn is_nothing(&self) -> bool {
        let nothing = Abroad::nothing();
        self.gpu.is_same(&nothing) && self.system.is_same(&nothing)
    }
}

/// What a word tells who reads it.
#[derive(Clone)]
pub struct Told {
    device: u16,
    told: Scoped,
}

impl Told {
    /// What the threads of `device` hear.
    fn heard_on(&self, device: u16) -> &Abroad {
        match self.device == device {
            true => &self.told.gpu,
            false => &self.told.system,
        }
    }

    /// This, and what was told `before`.
    fn after(mut self, before: Option<&Self>) -> Self {
        if let Some(before) = before {
            self.told.gpu.join(before.heard_on(self.device));
            self.told.system.join(&before.told.system);
        }
        self
    }
}

/// What a thread's fences have to do with its relaxed operations.
#[derive(Clone, Default)]
pub struct Fences {
    /// What relaxed stores tell since the last fence.
    telling: Scoped,
    /// What relaxed loads heard since the last fence, from threads of its device and from others.
    heard: Scoped,
}

/// Who a thread is, for others.
#[derive(Clone, Copy)]
pub struct Identity {
    pub cluster: ClusterId,
    pub device: u16,
}

impl Fences {
    /// Those of a thread that starts with knowing what happened `abroad`: as after a fence, for that is
    /// done.
    pub fn new(abroad: Abroad) -> Self {
        let telling = Scoped { gpu: abroad.clone(), system: abroad };
        Self { telling, heard: Scoped::default() }
    }

    /// A fence, of acquire and of release.
    pub fn fence(&mut self, clock: &mut ThreadClock, me: Identity, scope: Scope) {
        clock.acquire_abroad(&std::mem::take(&mut self.heard.gpu), me.cluster);
        if scope == Scope::System {
            clock.acquire_abroad(&std::mem::take(&mut self.heard.system), me.cluster);
        }
        let told = clock.release_abroad(me.cluster);
        if scope == Scope::System {
            self.telling.system = told.clone();
        }
        self.telling.gpu = told;
    }

    /// A load of a word that says what was `told`.
    pub fn load(&mut self, clock: &mut ThreadClock, me: Identity, acquires: bool, told: &Told) {
        let heard = told.heard_on(me.device);
        if acquires {
            clock.acquire_abroad(heard, me.cluster);
        } else if told.device == me.device {
            self.heard.gpu.join(heard);
        } else {
            self.heard.system.join(heard);
        }
    }

    /// What a store makes a word tell: a `release` of some scope, or a relaxed one. After `before`, if it
    /// also loads.
    pub fn store(
        &self,
        clock: &mut ThreadClock,
        me: Identity,
        release: Option<Scope>,
        before: Option<&Told>,
    ) -> Option<Told> {
        let mut told = self.telling.clone();
        if let Some(scope) = release {
            told.gpu = clock.release_abroad(me.cluster);
            if scope == Scope::System {
                told.system = told.gpu.clone();
            }
        }
        let told = Told { device: me.device, told }.after(before);
        (!told.told.is_nothing()).then_some(told)
    }
}
