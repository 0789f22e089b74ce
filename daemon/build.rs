//! Has the daemon linked anew when the order of its functions changes.

fn main() {
    println!("cargo::rerun-if-changed=link-order.gz");
    println!("cargo::rerun-if-changed=../deploy/image/cc");
}
