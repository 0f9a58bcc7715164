//! What becomes of the log when something goes wrong around it.

use crate::house::{House, allowed};

#[tokio::test]
async fn what_was_decided_is_on_disk_after_a_stop() {
    let mut house = House::start(&[]);
    let mut client = house.server.authorization().await;
    for _ in 0..100 {
        client.authorize(allowed()).await.unwrap();
    }
    house.server.signal("TERM");
    assert!(house.server.wait().success());
    assert_eq!(house.all_lines().len(), 100);
}
