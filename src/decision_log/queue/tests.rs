//! The queue of log lines.

use std::sync::Arc;

use super::*;

fn push(queue: &Queue, count: usize) -> usize {
    (0..count).filter(|_| queue.push(b"1234567\n")).count()
}

fn take(queue: &Queue) -> usize {
    let mut batch = Vec::new();
    assert!(queue.take_batch(&mut batch));
    queue.complete(&batch, 0);
    batch.len() / 8
}

#[test]
fn full_queue_drops_and_counts_lines() {
    let queue = Queue::new(WhenFull::Drop, 80);
    assert_eq!(push(&queue, 15), 10);
    let full = queue.metrics();
    assert_eq!((full.dropped, full.queue_bytes), (5, 80));
    let mut batch = Vec::new();
    assert!(queue.take_batch(&mut batch));
    // Lines that are being written take up room until they are complete.
    assert_eq!(push(&queue, 1), 0);
    queue.complete(&batch[..16], 0);
    assert_eq!(push(&queue, 3), 2);
    queue.complete(&batch[16..], 0);
    assert_eq!(take(&queue), 2);
    let metrics = queue.metrics();
    assert_eq!((metrics.written, metrics.dropped), (12, 7));
    assert_eq!(metrics.queue_bytes, 0);
}

#[tokio::test]
async fn blocking_queue_drops_nothing() {
    let queue = Arc::new(Queue::new(WhenFull::Block, 80));
    assert!(queue.has_space());
    assert_eq!(push(&queue, 10), 10);
    assert!(!queue.has_space());
    let waiting = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move {
            queue.wait_for_space().await;
            push(&queue, 1)
        }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(take(&queue), 10);
    assert_eq!(waiting.await.unwrap(), 1);
    assert_eq!(queue.metrics().dropped, 0);
}

#[tokio::test]
async fn closed_queue_yields_its_lines_and_then_ends() {
    let queue = Queue::new(WhenFull::Block, 80);
    push(&queue, 3);
    queue.close(Instant::now() + Duration::from_secs(60));
    push(&queue, 1);
    assert_eq!(take(&queue), 4);
    assert!(!queue.take_batch(&mut Vec::new()));
    assert_eq!(push(&queue, 1), 0);
    // A call that must be logged is not answered any more.
    let left = tokio::time::timeout(Duration::from_millis(10), queue.wait_for_space());
    left.await.unwrap_err();
}

#[test]
fn abandoned_lines_count_as_dropped() {
    let queue = Queue::new(WhenFull::Drop, 800);
    push(&queue, 3);
    let mut batch = Vec::new();
    queue.take_batch(&mut batch);
    push(&queue, 2);
    assert_eq!(queue.abandon(), 5);
    assert_eq!(queue.metrics().dropped, 5);
}

#[test]
fn rejected_lines_are_counted_and_free_room() {
    let queue = Queue::new(WhenFull::Block, 40);
    push(&queue, 5);
    assert!(!queue.has_space());
    let mut batch = Vec::new();
    queue.take_batch(&mut batch);
    queue.complete(&batch[..16], 1);
    assert!(queue.has_space());
    // Never more than there are.
    queue.complete(&batch[16..], 100);
    let metrics = queue.metrics();
    assert_eq!((metrics.written, metrics.refused), (1, 4));
    assert_eq!((metrics.dropped, metrics.queue_bytes), (0, 0));
}

#[test]
fn no_retry_after_the_deadline() {
    let queue = Queue::new(WhenFull::Drop, 80);
    let (short, long) = (Duration::from_millis(1), Duration::from_secs(3_600));
    assert!(queue.wait_to_retry(short, short));
    queue.close(Instant::now() + long);
    assert!(queue.wait_to_retry(long, short), "the last pause is short");
    queue.close(Instant::now());
    assert!(!queue.wait_to_retry(long, long));
}
