//! First light.
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tidings::{Cache, store::Memory};

#[tokio::test]
async fn two_pods() {
    let store = Memory::new();
    let loads = Arc::new(AtomicUsize::new(0));
    let a = Cache::builder("t").store(store.clone()).build().await.unwrap();
    let b = Cache::builder("t").store(store.clone()).build().await.unwrap();
    let mk = |c: &Cache| {
        let loads = loads.clone();
        c.entity("n", move |k: u64| {
            let loads = loads.clone();
            async move {
                loads.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Infallible>(k * 2)
            }
        })
        .build()
        .unwrap()
    };
    let (ea, eb) = (mk(&a), mk(&b));
    assert_eq!(*ea.get(&4).await.unwrap(), 8);
    println!("{:?}", ea.get_with(&4).await.unwrap());
    println!("{:?}", eb.get_with(&4).await.unwrap());
    println!("{:?}", eb.get_with(&4).await.unwrap());
    println!("{:?}", ea.invalidate(&4).await.unwrap());
    println!("{:?}", eb.get_with(&4).await.unwrap());
    println!("{:?}", ea.get_with(&4).await.unwrap());
    println!("{:?}", ea.clear().await.unwrap());
    println!("{:?}", eb.get_with(&4).await.unwrap());
    println!("loads {loads:?} {:#?}", a.health());
    a.close().await;
    println!("{:?}", ea.get_with(&4).await);
}
