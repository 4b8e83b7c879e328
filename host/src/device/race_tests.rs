//! What the CPU device says of work that nothing orders: each test has a way that orders it, too.

use cuda_std::cpu::ExecutorConfig;

use super::*;

fn watched() -> Device {
    Device::cpu_with(ExecutorConfig { check_races: true, ..ExecutorConfig::default() }, 0)
}

fn assert_race<T>(done: Result<T>) {
    match done {
        Err(DeviceError::Race { source, .. }) => {
            let said = source.to_string();
            assert!(said.contains("no queue, event or wait of the host orders the two"), "{said}");
        }
        Err(other) => panic!("not a race: {other}"),
        Ok(_) => panic!("not noticed"),
    }
}

#[test]
fn streams_are_ordered_by_events_and_by_waits() -> Result<()> {
    let device = watched();
    let (first, second) = (device.new_stream()?, device.new_stream()?);
    let (buffer, event) = (device.alloc::<u32>(1000)?, device.new_event()?);
    second.fill(&buffer, 1)?;
    assert_race(first.fill(&buffer, 2));
    second.record(&event)?;
    first.wait(&event)?;
    first.fill(&buffer, 2)?;
    assert_race(second.download(buffer.slice(999..)));
    first.fill(buffer.slice(..500), 3)?;
    // Waits for the event, not for what came after.
    event.synchronize()?;
    assert_race(second.fill(&buffer, 4));
    first.synchronize()?;
    second.fill(&buffer, 4)?;
    Ok(())
}

#[test]
fn copies_from_one_place_may_overlap() -> Result<()> {
    let device = watched();
    let (first, second) = (device.new_stream()?, device.new_stream()?);
    let source = Buffer::from_slice(&first, &[7u16; 300])?;
    let [a, b] = [device.alloc::<u16>(300)?, device.alloc::<u16>(300)?];
    first.copy(&source, &a)?;
    second.copy(&source, &b)?;
    assert_race(second.copy(&b, &source));
    assert_race(first.copy(&b, &a));
    Ok(())
}

#[test]
fn the_host_waits_before_it_touches_pinned_memory() -> Result<()> {
    let device = watched();
    let stream = device.new_stream()?;
    let (pinned, buffer) = (device.alloc_pinned::<u8>(64)?, device.alloc_zeroed::<u8>(64)?);
    pinned.write(0, &[1; 64])?;
    stream.copy(&pinned, &buffer)?;
    assert_race(pinned.write(63, &[2]));
    pinned.read(0, &mut [0; 64])?;
    stream.synchronize()?;
    pinned.write(63, &[2])?;
    stream.copy(&buffer, &pinned)?;
    assert_race(pinned.read(0, &mut [0]));
    while !stream.is_idle()? {}
    pinned.read(0, &mut [0])
}

#[test]
fn streams_of_a_capture_are_ordered_by_its_events() -> Result<()> {
    let device = watched();
    let (stream, side) = (device.new_stream()?, device.new_stream()?);
    let events = [device.new_event()?, device.new_event()?, device.new_event()?];
    let [fork, filled, join] = &events;
    let [a, b] = [device.alloc_zeroed::<u32>(40)?, device.alloc_zeroed::<u32>(40)?];
    let capture = |waits: bool| {
        stream.capture::<DeviceError>(|stream| {
            stream.record(fork)?;
            side.wait(fork)?;
            side.fill(&a, 1)?;
            side.record(filled)?;
            side.fill(&b, 1)?;
            side.record(join)?;
            if waits {
                stream.wait(filled)?;
            }
            stream.fill(&a, 2)?;
            stream.wait(join)?;
            stream.fill(&b, 2)
        })
    };
    let graph = capture(true)?;
    // Each replay comes after the one before.
    graph.launch(&stream)?;
    graph.launch(&stream)?;
    assert_eq!(stream.download(&b)?, [2; 40]);
    assert_race(capture(false)?.launch(&stream));
    Ok(())
}
