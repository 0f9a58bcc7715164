//! The queue between calls and the writer.

use std::sync::Arc;

use super::*;

fn push(queue: &Queue, count: usize) -> usize {
    (0..count).filter(|_| queue.push(b"1234567\n")).count()
}

fn take(queue: &Queue) -> usize {
    let mut batch = Vec::new();
    assert!(queue.take(&mut batch));
    queue.settled(&batch, 0);
    batch.len() / 8
}

#[test]
fn what_finds_no_room_is_dropped_and_counted() {
    let queue = Queue::new(WhenFull::Drop, 80);
    assert_eq!(push(&queue, 15), 10);
    let full = queue.figures();
    assert_eq!((full.dropped, full.queue_bytes), (5, 80));
    let mut batch = Vec::new();
    assert!(queue.take(&mut batch));
    // What is being written takes up room until it is there.
    assert_eq!(push(&queue, 1), 0);
    queue.settled(&batch[..16], 0);
    assert_eq!(push(&queue, 3), 2);
    queue.settled(&batch[16..], 0);
    assert_eq!(take(&queue), 2);
    let figures = queue.figures();
    assert_eq!((figures.written, figures.dropped), (12, 7));
    assert_eq!(figures.queue_bytes, 0);
}

#[tokio::test]
async fn where_calls_wait_nothing_is_dropped() {
    let queue = Arc::new(Queue::new(WhenFull::Block, 80));
    assert!(queue.has_room());
    assert_eq!(push(&queue, 10), 10);
    assert!(!queue.has_room());
    let waiting = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move {
            queue.wait_for_room().await;
            push(&queue, 1)
        }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(take(&queue), 10);
    assert_eq!(waiting.await.unwrap(), 1);
    assert_eq!(queue.figures().dropped, 0);
}

#[tokio::test]
async fn what_waits_is_taken_before_the_end_and_nothing_comes_after() {
    let queue = Queue::new(WhenFull::Block, 80);
    push(&queue, 3);
    queue.close(Instant::now() + Duration::from_secs(60));
    push(&queue, 1);
    assert_eq!(take(&queue), 4);
    assert!(!queue.take(&mut Vec::new()));
    assert_eq!(push(&queue, 1), 0);
    // A call that must be in the log is not answered any more.
    let left = tokio::time::timeout(Duration::from_millis(10), queue.wait_for_room());
    left.await.unwrap_err();
}

#[test]
fn what_is_given_up_is_counted_as_dropped() {
    let queue = Queue::new(WhenFull::Drop, 800);
    push(&queue, 3);
    let mut batch = Vec::new();
    queue.take(&mut batch);
    push(&queue, 2);
    assert_eq!(queue.abandon(), 5);
    assert_eq!(queue.figures().dropped, 5);
}

#[test]
fn what_is_refused_for_good_is_counted_and_makes_room() {
    let queue = Queue::new(WhenFull::Block, 40);
    push(&queue, 5);
    assert!(!queue.has_room());
    let mut batch = Vec::new();
    queue.take(&mut batch);
    queue.settled(&batch[..16], 1);
    assert!(queue.has_room());
    // No more than there are, whatever is said.
    queue.settled(&batch[16..], 100);
    let figures = queue.figures();
    assert_eq!((figures.written, figures.refused), (1, 4));
    assert_eq!((figures.dropped, figures.queue_bytes), (0, 0));
}

#[test]
fn there_is_no_rest_once_the_end_has_come() {
    let queue = Queue::new(WhenFull::Drop, 80);
    let (short, long) = (Duration::from_millis(1), Duration::from_secs(3_600));
    assert!(queue.rest(short, short));
    queue.close(Instant::now() + long);
    assert!(queue.rest(long, short), "the last chance is not slept over");
    queue.close(Instant::now());
    assert!(!queue.rest(long, long));
}
