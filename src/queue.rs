//! The only way to create channels: every queue between two threads is bounded, has a name and a gauge, and can wake
//! a thread that sleeps in a mio `Poll`, or in [`sleep_until`] for several queues.
//!
//! If messages differ much in size, a queue is *weighed*: in addition to the number of its messages, their bytes are
//! limited. A message that alone exceeds the limit is still accepted if the queue is empty.
//!
//! Senders that must never wait use [`Sender::try_send`] and decide what to do if the queue is full; every refusal is
//! counted here. [`Sender::hand_over`] bypasses the queue if the receiver's work can be done at once on the sender's
//! thread.

use crate::stop::Stop;
use crate::{error_limited, pulse};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crossbeam_channel as channel;

/// How often a sender that waits for room checks the queue.
const ROOM_CHECK: Duration = Duration::from_micros(500);

/// The state of a queue at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gauge {
    /// The queue's name.
    pub name: String,
    /// The number of messages in it.
    pub depth: usize,
    /// The most messages that were in it since the start.
    pub depth_max: usize,
    /// The most messages that fit.
    pub capacity: usize,
    /// The bytes of the messages in it; 0 if they are not weighed.
    pub bytes: usize,
    /// The most bytes that fit; `None`: messages are not weighed.
    pub bytes_max: Option<usize>,
    /// How often it had no room.
    pub refused: u64,
}

/// Does a receiver's work on the sender's thread.
pub trait InlineStage<T>: std::fmt::Debug + Send + Sync {
    /// Handles the message as the receiver would.
    ///
    /// # Errors
    /// Returns the message if the receiver is busy, has messages waiting, which come first, or if the work is too
    /// much for the sender's thread.
    fn take(&self, message: T) -> Result<(), T>;
}

#[derive(Debug)]
struct Meter {
    name: String,
    capacity: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
    depth_max: AtomicUsize,
    refused: AtomicU64,
    /// The thread that every message wakes.
    sleeper: OnceLock<Thread>,
}

/// Reads a queue's gauge, whatever its messages are.
#[derive(Clone)]
pub struct GaugeReader {
    meter: Arc<Meter>,
    depth: Arc<dyn Fn() -> usize + Send + Sync>,
}

impl GaugeReader {
    /// The gauge now.
    #[must_use]
    pub fn read(&self) -> Gauge {
        Gauge {
            name: self.meter.name.clone(),
            depth: (self.depth)(),
            depth_max: self.meter.depth_max.load(Ordering::Relaxed),
            capacity: self.meter.capacity,
            bytes: self.meter.bytes.load(Ordering::Relaxed),
            bytes_max: Some(self.meter.bytes_max).filter(|max| *max != usize::MAX),
            refused: self.meter.refused.load(Ordering::Relaxed),
        }
    }
}

/// Why a message was not accepted; the message is returned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError<T> {
    /// The queue is full.
    #[error("the queue is full")]
    Full(T),
    /// The receiver is gone: the daemon is stopping.
    #[error("the queue is closed")]
    Closed(T),
}

/// The sending end; clones send to the same queue.
#[derive(Debug)]
pub struct Sender<T> {
    inner: channel::Sender<T>,
    meter: Arc<Meter>,
    inline: Arc<OnceLock<Box<dyn InlineStage<T>>>>,
    weigh: fn(&T) -> usize,
    waker: Option<Arc<mio::Waker>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        let (inner, meter) = (self.inner.clone(), Arc::clone(&self.meter));
        let (inline, waker) = (Arc::clone(&self.inline), self.waker.clone());
        Self { inner, meter, inline, weigh: self.weigh, waker }
    }
}

/// The receiving end; clones share the work.
#[derive(Debug)]
pub struct Receiver<T> {
    inner: channel::Receiver<T>,
    meter: Arc<Meter>,
    inline: Arc<OnceLock<Box<dyn InlineStage<T>>>>,
    weigh: fn(&T) -> usize,
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        let (inner, meter) = (self.inner.clone(), Arc::clone(&self.meter));
        Self { inner, meter, inline: Arc::clone(&self.inline), weigh: self.weigh }
    }
}

/// The capacity of a weighed queue in bytes, and the function that weighs its messages.
#[derive(Debug)]
pub struct Weight<T> {
    /// The most bytes.
    pub bytes_max: usize,
    /// The bytes of a message; must return the same when the message is sent and when it is received.
    pub weigh: fn(&T) -> usize,
}

impl<T> Clone for Weight<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Weight<T> {}

impl<T> Weight<T> {
    /// Messages are not weighed.
    pub const NONE: Self = Self { bytes_max: usize::MAX, weigh: |_| 0 };
}

/// A queue of at most `capacity` messages.
#[must_use]
pub fn bounded<T>(name: impl Into<String>, capacity: usize) -> (Sender<T>, Receiver<T>) {
    make(name.into(), capacity, Weight::NONE, None)
}

/// A queue whose messages wake the `Poll` of `waker`.
#[must_use]
pub fn bounded_waking<T>(
    name: impl Into<String>,
    capacity: usize,
    waker: Arc<mio::Waker>,
) -> (Sender<T>, Receiver<T>) {
    make(name.into(), capacity, Weight::NONE, Some(waker))
}

/// A queue of at most `capacity` messages and `weight.bytes_max` bytes.
#[must_use]
pub fn weighed<T>(
    name: impl Into<String>,
    capacity: usize,
    weight: Weight<T>,
    waker: Option<Arc<mio::Waker>>,
) -> (Sender<T>, Receiver<T>) {
    make(name.into(), capacity, weight, waker)
}

fn make<T>(
    name: String,
    capacity: usize,
    weight: Weight<T>,
    waker: Option<Arc<mio::Waker>>,
) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "queue {name} needs room for a message");
    let (sender, receiver) = channel::bounded(capacity);
    let Weight { bytes_max, weigh } = weight;
    let meter = Arc::new(Meter {
        name,
        capacity,
        bytes: AtomicUsize::new(0),
        bytes_max,
        depth_max: AtomicUsize::new(0),
        refused: AtomicU64::new(0),
        sleeper: OnceLock::new(),
    });
    let inline = Arc::default();
    let receiver =
        Receiver { inner: receiver, meter: Arc::clone(&meter), inline: Arc::clone(&inline), weigh };
    (Sender { inner: sender, meter, inline, weigh, waker }, receiver)
}

impl<T> Sender<T> {
    /// Handles the message at once on this thread, if the receiver offers an [`InlineStage`] that accepts it.
    ///
    /// # Errors
    /// Returns the message otherwise: it has to be sent.
    pub fn hand_over(&self, message: T) -> Result<(), T> {
        match self.inline.get() {
            Some(inline) => inline.take(message),
            None => Err(message),
        }
    }

    /// Adds the message if there is room, without waiting.
    ///
    /// # Errors
    /// Returns the message if the queue is full or closed.
    pub fn try_send(&self, message: T) -> Result<(), SendError<T>> {
        let result = self.offer(message);
        if matches!(result, Err(SendError::Full(_))) {
            self.meter.refused.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Adds the message; waits up to `wait` for room.
    ///
    /// # Errors
    /// Returns the message if the queue remained full or is closed.
    pub fn send_timeout(&self, message: T, wait: Duration) -> Result<(), SendError<T>> {
        let deadline = Instant::now() + wait;
        let mut result = self.try_send(message);
        while let Err(SendError::Full(message)) = result {
            if Instant::now() >= deadline {
                return Err(SendError::Full(message));
            }
            pulse::beat();
            std::thread::sleep(ROOM_CHECK);
            result = self.offer(message);
        }
        result
    }

    fn offer(&self, message: T) -> Result<(), SendError<T>> {
        let bytes = (self.weigh)(&message);
        if !self.reserve(bytes) {
            return Err(SendError::Full(message));
        }
        let error = match self.inner.try_send(message) {
            Ok(()) => {
                self.sent();
                return Ok(());
            }
            Err(error) => error,
        };
        self.meter.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(match error {
            channel::TrySendError::Full(message) => SendError::Full(message),
            channel::TrySendError::Disconnected(message) => SendError::Closed(message),
        })
    }

    /// Reserves the bytes if there is room for them, or the queue is empty.
    fn reserve(&self, bytes: usize) -> bool {
        let taken = self.meter.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = taken == 0 || taken.saturating_add(bytes) <= self.meter.bytes_max;
        if !fits {
            self.meter.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// A reader of the queue's gauge.
    #[must_use]
    pub fn gauge(&self) -> GaugeReader
    where
        T: Send + 'static,
    {
        let inner = self.inner.clone();
        GaugeReader { meter: Arc::clone(&self.meter), depth: Arc::new(move || inner.len()) }
    }

    fn sent(&self) {
        self.meter.depth_max.fetch_max(self.inner.len(), Ordering::Relaxed);
        if let Some(sleeper) = self.meter.sleeper.get() {
            // Makes a system call only while the thread sleeps.
            sleeper.unpark();
        }
        if let Some(waker) = &self.waker
            && let Err(error) = waker.wake()
        {
            error_limited!(queue = self.meter.name, %error, "a sleeping thread could not be woken");
        }
    }
}

impl<T> Receiver<T> {
    /// The next message, if there is one.
    #[must_use]
    pub fn try_recv(&self) -> Option<T> {
        self.inner.try_recv().ok().map(|message| self.taken(message))
    }

    /// Waits up to `wait` for the next message; `None` also if every sender is gone.
    pub fn recv_timeout(&self, wait: Duration) -> Option<T> {
        pulse::beat();
        let message = self.inner.recv_timeout(wait);
        pulse::beat();
        message.ok().map(|message| self.taken(message))
    }

    /// Waits up to `wait` for the next message; `None` also when the daemon stops and if every sender is gone.
    pub fn recv_unless(&self, stop: &Stop, wait: Duration) -> Option<T> {
        pulse::beat();
        let message = channel::select! {
            recv(self.inner) -> message => message.ok(),
            recv(stop.given()) -> _ => None,
            default(wait) => None,
        };
        pulse::beat();
        message.map(|message| self.taken(message))
    }

    /// From now on every message ends the calling thread's [`sleep_until`], including one that begins later. A queue
    /// can wake only one thread.
    pub fn wake_this_thread(&self) {
        let thread = std::thread::current();
        let sleeper = self.meter.sleeper.get_or_init(|| thread.clone());
        debug_assert_eq!(sleeper.id(), thread.id(), "a queue wakes one thread");
    }

    /// From now on senders may run this receiver's work on their threads. Can be set once.
    pub fn offer_inline(&self, inline: impl InlineStage<T> + 'static) {
        let set = self.inline.set(Box::new(inline));
        debug_assert!(set.is_ok(), "a queue is taken from inline at one place");
    }

    fn taken(&self, message: T) -> T {
        self.meter.bytes.fetch_sub((self.weigh)(&message), Ordering::Relaxed);
        message
    }

    /// The number of messages in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// Whether there is nothing to receive now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }
}

/// Waits until a message may have arrived in a queue that wakes this thread ([`Receiver::wake_this_thread`]), or
/// until `deadline`. A message that arrived since the last wait ends this one at once.
pub fn sleep_until(deadline: Instant) {
    // A spurious wake-up costs the caller one check of empty queues.
    pulse::beat();
    std::thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
    pulse::beat();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_is_counted() {
        let (sender, receiver) = bounded("q", 2);
        sender.try_send(1).unwrap();
        sender.try_send(2).unwrap();
        assert_eq!(sender.try_send(3), Err(SendError::Full(3)));
        assert_eq!(sender.send_timeout(4, Duration::from_millis(1)), Err(SendError::Full(4)));
        let gauge = sender.gauge().read();
        assert_eq!((gauge.depth, gauge.depth_max, gauge.capacity, gauge.refused), (2, 2, 2, 2));
        assert_eq!(receiver.try_recv(), Some(1));
        drop(receiver);
        assert_eq!(sender.try_send(5), Err(SendError::Closed(5)));
    }

    #[derive(Debug)]
    struct OnlyEven(std::sync::Mutex<Vec<u32>>);

    impl InlineStage<u32> for Arc<OnlyEven> {
        fn take(&self, message: u32) -> Result<(), u32> {
            if message % 2 == 1 {
                return Err(message);
            }
            self.0.lock().unwrap().push(message);
            Ok(())
        }
    }

    #[test]
    fn messages_that_the_inline_stage_refuses_are_returned() {
        let (sender, receiver) = bounded("s", 1);
        assert_eq!(sender.hand_over(2), Err(2), "there is none");
        let inline = Arc::new(OnlyEven(std::sync::Mutex::default()));
        receiver.offer_inline(Arc::clone(&inline));
        assert_eq!(sender.clone().hand_over(4), Ok(()));
        assert_eq!(sender.hand_over(5), Err(5));
        assert_eq!(*inline.0.lock().unwrap(), [4]);
        assert!(receiver.is_empty(), "nothing went through the queue");
    }

    #[test]
    fn bytes_have_a_bound_of_their_own() {
        let weight = Weight { bytes_max: 10, weigh: |message: &Vec<u8>| message.len() };
        let (sender, receiver) = weighed("w", 8, weight, None);
        sender.try_send(vec![0; 6]).unwrap();
        assert_eq!(sender.try_send(vec![0; 5]), Err(SendError::Full(vec![0; 5])));
        sender.try_send(vec![0; 4]).unwrap();
        assert_eq!(sender.gauge().read().bytes, 10);
        assert_eq!(receiver.try_recv().map(|message| message.len()), Some(6));
        assert_eq!(receiver.recv_timeout(Duration::ZERO).map(|message| message.len()), Some(4));
        // A message that exceeds the limit is accepted alone.
        sender.try_send(vec![0; 99]).unwrap();
        assert_eq!(sender.gauge().read().bytes, 99);
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_message() {
        let (sender, receiver) = bounded::<u8>("s", 1);
        let (stop, long) = (Stop::new(), Duration::from_secs(600));
        assert_eq!(receiver.recv_unless(&stop, Duration::from_millis(1)), None);
        sender.try_send(7).unwrap();
        assert_eq!(receiver.recv_unless(&stop, long), Some(7));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| receiver.recv_unless(&stop, long));
            stop.request();
            assert_eq!(waiting.join().unwrap(), None);
        });
    }

    #[test]
    fn sleeping_ends_with_a_message_or_at_the_deadline() {
        let (first, one) = bounded::<u8>("one", 1);
        let (_second, two) = bounded::<u8>("two", 1);
        one.wake_this_thread();
        two.wake_this_thread();
        let from = Instant::now();
        sleep_until(from + Duration::from_millis(5));
        std::thread::scope(|scope| {
            scope.spawn(|| first.try_send(7).unwrap());
            while one.is_empty() {
                sleep_until(from + Duration::from_secs(60));
            }
        });
        assert_eq!((one.try_recv(), two.try_recv()), (Some(7), None));
        first.try_send(8).unwrap();
        sleep_until(from + Duration::from_secs(60));
        assert!(from.elapsed() < Duration::from_secs(60), "what came before the sleep ends it");
    }
}
