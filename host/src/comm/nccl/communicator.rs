//! One rank's NCCL communicator.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};

use super::library::Nccl;
use crate::comm::communicator::Transfer;
use crate::comm::meeting::Meeting;
use crate::comm::{CommError, Message, Reduce, ReduceOp, Result};
use crate::device::{Device, Extent, Stream};

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// The header's version that the layout of `ncclConfig_t` is of; older libraries read its start.
const CONFIG_VERSION: u32 = 22_800;
const CONFIG_MAGIC: u32 = 0xcafe_beef;

/// How long the end of a communicator may take before it is aborted instead.
const FAREWELL: Duration = Duration::from_secs(10);

pub(in crate::comm) struct NcclCommunicator {
    nccl: &'static Nccl,
    /// Null once aborted.
    handle: Cell<ncclComm_t>,
    meeting: Arc<Meeting<Message>>,
    rank: usize,
    size: usize,
    device: Device,
}

impl NcclCommunicator {
    /// All ranks do this together.
    pub(in crate::comm) fn new(
        meeting: Arc<Meeting<Message>>,
        rank: usize,
        size: usize,
        device: &Device,
    ) -> Result<Self> {
        const OPERATION: &str = "start of NCCL";
        let nccl = Nccl::get()?;
        let mut created = None;
        if rank == 0 {
            let mut id = ncclUniqueId { internal: [0; 128] };
            // SAFETY: writes one id.
            check(nccl, rank, "ncclGetUniqueId", unsafe { (nccl.ncclGetUniqueId)(&raw mut id) })?;
            created = Some(id.internal);
        }
        let ids = meeting.exchange(rank, OPERATION, created)?;
        let id = ncclUniqueId { internal: ids[0].expect("rank 0 sent the id") };

        device.bind()?;
        let mut config = non_blocking();
        let mut handle = ptr::null_mut();
        // SAFETY: all ranks call this with the same id and size and their own rank; this thread
        // has bound the rank's GPU.
        let started = unsafe {
            (nccl.ncclCommInitRankConfig)(
                &raw mut handle,
                size as c_int,
                id,
                rank as c_int,
                &raw mut config,
            )
        };
        let device = device.clone();
        let communicator = Self { nccl, handle: Cell::new(handle), meeting, rank, size, device };
        communicator.finish(OPERATION, "ncclCommInitRankConfig", started)?;
        Ok(communicator)
    }

    pub(in crate::comm) fn rank(&self) -> usize {
        self.rank
    }

    pub(in crate::comm) fn size(&self) -> usize {
        self.size
    }

    pub(in crate::comm) fn meeting(&self) -> &Meeting<Message> {
        &self.meeting
    }

    pub(in crate::comm) fn transfer(
        &self,
        stream: &Stream,
        transfers: Vec<Transfer>,
    ) -> Result<()> {
        const BYTES: ncclDataType_t = ncclDataType_t::ncclUint8;
        if transfers.is_empty() {
            return Ok(());
        }
        let queue = self.queue(stream)?;
        let handle = self.live_handle("send or recv")?;
        // SAFETY: groups are per thread, and this one is closed below whatever happens.
        self.check("ncclGroupStart", unsafe { (self.nccl.ncclGroupStart)() })?;
        let mut first_failure = Ok(());
        for transfer in &transfers {
            let (call, code) = match transfer {
                Transfer::Send { to, extent } => {
                    let (from, bytes) = (address(extent).cast_const(), extent.num_bytes());
                    // SAFETY: the extent was checked, and is kept below until the stream has
                    // passed the operation.
                    let code = unsafe {
                        (self.nccl.ncclSend)(from, bytes, BYTES, *to as c_int, handle, queue)
                    };
                    ("ncclSend", code)
                }
                Transfer::Recv { from, extent } => {
                    let (to, bytes) = (address(extent), extent.num_bytes());
                    // SAFETY: as above.
                    let code = unsafe {
                        (self.nccl.ncclRecv)(to, bytes, BYTES, *from as c_int, handle, queue)
                    };
                    ("ncclRecv", code)
                }
            };
            // Inside of a group an operation is noted only, whatever it says about progress.
            if code != IN_PROGRESS {
                first_failure = first_failure.and(self.check(call, code));
            }
        }
        // SAFETY: closes the group opened above.
        let ended = unsafe { (self.nccl.ncclGroupEnd)() };
        first_failure?;
        self.finish("send or recv", "ncclGroupEnd", ended)?;
        for transfer in &transfers {
            let (Transfer::Send { extent, .. } | Transfer::Recv { extent, .. }) = transfer;
            stream.keep_extent(extent);
        }
        Ok(())
    }

    pub(in crate::comm) fn all_reduce<T: Reduce>(
        &self,
        stream: &Stream,
        source: &Extent,
        destination: &Extent,
        op: ReduceOp,
    ) -> Result<()> {
        let op = match op {
            ReduceOp::Sum => ncclRedOp_t::ncclSum,
            ReduceOp::Max => ncclRedOp_t::ncclMax,
        };
        let len = source.num_bytes() / size_of::<T>();
        self.collective(stream, "all_reduce", "ncclAllReduce", source, destination, |nccl| {
            let (from, to) = (address(source).cast_const(), address(destination));
            let (handle, queue) = (nccl.handle, nccl.queue);
            // SAFETY: both extents hold `len` elements of that type and outlive the operation.
            unsafe { (self.nccl.ncclAllReduce)(from, to, len, T::NCCL, op, handle, queue) }
        })
    }

    pub(in crate::comm) fn all_gather(
        &self,
        stream: &Stream,
        source: &Extent,
        destination: &Extent,
    ) -> Result<()> {
        let bytes = source.num_bytes();
        self.collective(stream, "all_gather", "ncclAllGather", source, destination, |nccl| {
            let (from, to) = (address(source).cast_const(), address(destination));
            let (kind, handle, queue) = (ncclDataType_t::ncclUint8, nccl.handle, nccl.queue);
            // SAFETY: the destination holds `size` times the source; both outlive the operation.
            unsafe { (self.nccl.ncclAllGather)(from, to, bytes, kind, handle, queue) }
        })
    }

    pub(in crate::comm) fn broadcast(
        &self,
        stream: &Stream,
        extent: &Extent,
        root: usize,
    ) -> Result<()> {
        let (bytes, root) = (extent.num_bytes(), root as c_int);
        self.collective(stream, "broadcast", "ncclBroadcast", extent, extent, |nccl| {
            let to = address(extent);
            let (kind, handle, queue) = (ncclDataType_t::ncclUint8, nccl.handle, nccl.queue);
            // SAFETY: in place, in an extent that outlives the operation.
            unsafe {
                (self.nccl.ncclBroadcast)(to.cast_const(), to, bytes, kind, root, handle, queue)
            }
        })
    }

    /// Whether what was begun at `start` may still go on: an error, after an abort, when it has
    /// failed, a peer has, or the deadline has passed.
    pub(in crate::comm) fn check_progress(
        &self,
        operation: &'static str,
        start: Instant,
    ) -> Result<()> {
        let deadline = self.meeting.deadline();
        let error = match (self.progress(operation), self.meeting.check(self.rank, operation)) {
            (Err(error), _) | (_, Err(error)) => error,
            _ if start.elapsed() < deadline => return Ok(()),
            _ => {
                let peers = (0..self.size).filter(|&peer| peer != self.rank).collect();
                CommError::Deadline { rank: self.rank, operation, peers, deadline }
            }
        };
        self.abort();
        Err(error)
    }

    fn collective(
        &self,
        stream: &Stream,
        operation: &'static str,
        call: &'static str,
        source: &Extent,
        destination: &Extent,
        issue: impl FnOnce(Issue) -> c_int,
    ) -> Result<()> {
        let queue = self.queue(stream)?;
        let handle = self.live_handle(operation)?;
        let code = issue(Issue { handle, queue });
        self.finish(operation, call, code)?;
        stream.keep_extent(source);
        stream.keep_extent(destination);
        Ok(())
    }

    /// Waits until NCCL has taken a call in. That may take its peers, the first time.
    fn finish(&self, operation: &'static str, call: &'static str, code: c_int) -> Result<()> {
        if code != IN_PROGRESS {
            return self.check(call, code);
        }
        let start = Instant::now();
        while self.progress(operation)? == IN_PROGRESS {
            self.check_progress(operation, start)?;
            thread::yield_now();
        }
        Ok(())
    }

    /// The communicator's state: done or in progress; an error if it is neither.
    fn progress(&self, operation: &'static str) -> Result<c_int> {
        let handle = self.live_handle(operation)?;
        let mut state = SUCCESS;
        // SAFETY: the communicator lives; writes one int.
        let code = unsafe { (self.nccl.ncclCommGetAsyncError)(handle, &raw mut state) };
        self.check("ncclCommGetAsyncError", code)?;
        if state != IN_PROGRESS {
            self.check(operation, state)?;
        }
        Ok(state)
    }

    fn queue(&self, stream: &Stream) -> Result<cudarc::driver::sys::CUstream> {
        self.device.bind()?;
        stream.cuda_handle().ok_or_else(|| CommError::Argument {
            operation: "NCCL",
            argument: "stream",
            needed: format!("a stream of {}", self.device.id()),
            got: format!("one of {}", stream.device().id()),
        })
    }

    fn live_handle(&self, operation: &'static str) -> Result<ncclComm_t> {
        let handle = self.handle.get();
        if handle.is_null() {
            return Err(CommError::Aborted { rank: self.rank, operation });
        }
        Ok(handle)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        check(self.nccl, self.rank, call, code)
    }

    /// Ends what runs, without the peers.
    fn abort(&self) {
        let handle = self.handle.replace(ptr::null_mut());
        if !handle.is_null() {
            // SAFETY: the communicator lives, and is not used after this.
            unsafe { (self.nccl.ncclCommAbort)(handle) };
        }
    }

    /// Waits until all operations are done and says goodbye to the peers.
    fn finalize(&self) -> Result<()> {
        const OPERATION: &str = "end of NCCL";
        let handle = self.live_handle(OPERATION)?;
        self.meeting.failure().map_or(Ok(()), |_| {
            Err(CommError::Aborted { rank: self.rank, operation: OPERATION })
        })?;
        let start = Instant::now();
        // SAFETY: the communicator lives.
        let code = unsafe { (self.nccl.ncclCommFinalize)(handle) };
        if code != IN_PROGRESS {
            self.check("ncclCommFinalize", code)?;
        }
        while self.progress(OPERATION)? == IN_PROGRESS {
            self.meeting.check(self.rank, OPERATION)?;
            if start.elapsed() > FAREWELL {
                return Err(CommError::Aborted { rank: self.rank, operation: OPERATION });
            }
            thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for NcclCommunicator {
    fn drop(&mut self) {
        let bound = self.device.bind();
        if bound.is_err() || self.finalize().is_err() {
            return self.abort();
        }
        // SAFETY: finalized, and not used after this.
        unsafe { (self.nccl.ncclCommDestroy)(self.handle.get()) };
    }
}

/// What a collective is issued with.
struct Issue {
    handle: ncclComm_t,
    queue: cudarc::driver::sys::CUstream,
}

fn check(nccl: &Nccl, rank: usize, call: &'static str, code: c_int) -> Result<()> {
    if code == SUCCESS {
        return Ok(());
    }
    Err(CommError::Nccl { rank, call, code, text: nccl.error_text(code) })
}

fn address(extent: &Extent) -> *mut c_void {
    ptr::with_exposed_provenance_mut(extent.address() as usize)
}

/// NCCL's defaults, but for the waiting, which this side does.
fn non_blocking() -> ncclConfig_t {
    const UNDEFINED: c_int = c_int::MIN;
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
    }
}
