// wr-bench: Rust's Arc and Weak. The loops are here, so that no operation is a call from another language.

use std::arch::asm;
use std::sync::{Arc, Mutex, Weak};

#[derive(Default)]
pub struct Payload {
    _words: [u64; 8],
}

// The compiler takes the value for used, and all memory for changed.
#[inline(always)]
fn keep<T>(value: *const T) {
    unsafe { asm!("/* {0} */", in(reg) value, options(nostack, preserves_flags)) }
}

pub struct Shared {
    strong: Option<Arc<Payload>>,
    weak: Weak<Payload>,
    slot: Mutex<Arc<Payload>>,
}

#[no_mangle]
pub extern "C" fn wr_bench_rust_new(alive: bool) -> *mut Shared {
    let strong = Arc::new(Payload::default());
    let weak = Arc::downgrade(&strong);
    Box::into_raw(Box::new(Shared {
        strong: if alive { Some(strong) } else { None },
        weak,
        slot: Mutex::new(Arc::new(Payload::default())),
    }))
}

/// # Safety
/// `shared` is from `wr_bench_rust_new()` and not used any more.
#[no_mangle]
pub unsafe extern "C" fn wr_bench_rust_free(shared: *mut Shared) {
    drop(Box::from_raw(shared));
}

#[no_mangle]
pub extern "C" fn wr_bench_rust_clone(shared: &Shared, n: usize) {
    let strong = shared.strong.as_ref().unwrap();
    for _ in 0..n {
        let more = Arc::clone(strong);
        keep(&*more);
    }
}

#[no_mangle]
pub extern "C" fn wr_bench_rust_upgrade(shared: &Shared, n: usize) {
    for _ in 0..n {
        match shared.weak.upgrade() {
            Some(obj) => keep(&*obj),
            None => keep(std::ptr::null::<Payload>()),
        }
    }
}

#[no_mangle]
pub extern "C" fn wr_bench_rust_slot(shared: &Shared, n: usize) {
    for _ in 0..n {
        let obj = Arc::clone(&*shared.slot.lock().unwrap());
        keep(&*obj);
    }
}

#[no_mangle]
pub extern "C" fn wr_bench_rust_create(n: usize) {
    for _ in 0..n {
        let obj = Arc::new(Payload::default());
        keep(&*obj);
    }
}

#[no_mangle]
pub extern "C" fn wr_bench_rust_create_weak(n: usize) {
    for _ in 0..n {
        let obj = Arc::new(Payload::default());
        let weak = Arc::downgrade(&obj);
        keep(&weak);
        drop(obj);
        drop(weak);
    }
}

// For the group memory: they are never given back.

#[no_mangle]
pub extern "C" fn wr_bench_rust_reserve(n: usize) -> *mut Vec<Arc<Payload>> {
    let mut objects = Vec::with_capacity(n);
    // Its pages are there before the objects are counted.
    unsafe { std::ptr::write_bytes(Vec::as_mut_ptr(&mut objects), 0, n) };
    Box::into_raw(Box::new(objects))
}

#[no_mangle]
pub extern "C" fn wr_bench_rust_fill(objects: &mut Vec<Arc<Payload>>, n: usize) {
    for _ in 0..n {
        objects.push(Arc::new(Payload::default()));
    }
}

#[no_mangle]
pub extern "C" fn wr_bench_rust_downgrade(objects: &Vec<Arc<Payload>>) {
    let handles: Vec<Weak<Payload>> = objects.iter().map(Arc::downgrade).collect();
    keep(handles.as_ptr());
    std::mem::forget(handles);
}
