use proc_macro2::TokenStream;
use quote::quote;

use crate::expand::kernel;

fn expand(arguments: TokenStream, function: TokenStream) -> String {
    let tokens = kernel(arguments, function).expect("a kernel");
    syn::parse2::<syn::File>(tokens.clone()).expect("items");
    tokens.to_string()
}

fn refusal(arguments: TokenStream, function: TokenStream) -> String {
    kernel(arguments, function).expect_err("no kernel").to_string()
}

fn scale() -> TokenStream {
    quote! {
        /// Scales.
        pub unsafe fn scale(
            /// `[n]`
            x: GlobalMut<f32>,
            mut n: u32,
            table: Global<[u32; 4]>,
        ) {
            n += 1;
        }
    }
}

/// `text` without blanks, as tokens have no settled spacing.
fn squeeze(text: &str) -> String {
    text.split_whitespace().collect()
}

#[track_caller]
fn assert_has(expansion: &str, part: &str) {
    assert!(squeeze(expansion).contains(&squeeze(part)), "no `{part}` in\n{expansion}");
}

#[test]
fn entry_has_the_launch_bounds_that_are_given() {
    let plain = expand(quote! {}, scale());
    assert_has(&plain, r#"#[unsafe(no_mangle)] pub unsafe extern "ptx-kernel" fn scale("#);
    assert!(!plain.contains("launch_bounds"));

    let bounded = expand(quote! { threads = 256, cluster = 2 }, scale());
    assert_has(&bounded, "::cuda_std::launch_bounds::<256u32, 0u32, 2u32>();");
    assert_has(&bounded, "Option::Some(256u32)");
}

#[test]
fn a_hopper_kernel_is_in_its_ptx_only() {
    let hopper = expand(quote! { target = "sm_90a" }, scale());
    assert_has(&hopper, r#"#[cfg(all(target_arch = "nvptx64", cuda_arch = "sm_90a"))]"#);
    assert_has(&hopper, "PtxTarget::Sm90a");
    assert_has(&expand(quote! {}, scale()), "PtxTarget::Portable");
}

#[test]
fn a_kernel_starts_early_if_it_says_so() {
    assert_has(&expand(quote! { early = true }, scale()), "const EARLY: bool = true;");
    assert_has(&expand(quote! {}, scale()), "const EARLY: bool = false;");
}

#[test]
fn host_struct_has_docs_fields_and_parameters_in_order() {
    let host = expand(quote! {}, scale());
    assert_has(&host, r##"#[doc = r" `[n]`"] pub x: GlobalMut<f32>"##);
    assert_has(&host, r#"#[doc = "The kernel's argument `n`."] pub n: u32"#);
    assert_has(&host, "let Self { x, mut n, table } = self;");
    for parameter in ["x: GlobalMut<f32>", "n: u32", "table: Global<[u32; 4]>"] {
        assert!(host.contains(&format!("\"{parameter}\"")), "{parameter} in {host}");
    }
}

#[test]
fn parameter_docs_are_not_on_the_entry() {
    let expansion = squeeze(&expand(quote! {}, scale()));
    assert!(expansion.contains("fnscale(x:GlobalMut<f32>,mutn:u32,"), "{expansion}");
}

#[test]
fn a_tensor_map_is_known_by_its_parameter() {
    let expansion = expand(
        quote! {},
        quote! { pub unsafe fn tiles(n: u32, x: cuda_std::tensor_map::TensorMap<f32, 2>) { use_it(x); } },
    );
    assert_has(
        &expansion,
        "fn tiles(n: u32, _x: <cuda_std::tensor_map::TensorMap<f32, 2>
            as ::cuda_std::tensor_map::Parameter>::Bytes)",
    );
    assert_has(&expansion, "Parameter>::at::<1usize>();");
    assert_has(&expansion, "pub x: cuda_std::tensor_map::TensorMap<f32, 2>");
}

#[test]
fn other_attributes_stay_with_the_code() {
    let expansion = expand(
        quote! { threads = 32 },
        quote! { #[cfg(feature = "x")] #[allow(unused)] pub unsafe fn empty() {} },
    );
    assert_eq!(squeeze(&expansion).matches("#[cfg(feature=\"x\")]").count(), 4);
    assert_has(&expansion, "#[allow(unused)] unsafe fn run(self)");
}

#[test]
fn what_is_no_kernel_is_refused_in_words() {
    let cases = [
        (quote! { unsafe fn k() {} }, "a kernel is `pub`"),
        (quote! { pub fn k() {} }, "`unsafe fn`"),
        (quote! { pub unsafe fn k<T>() {} }, "cannot be generic"),
        (quote! { pub unsafe fn k<'a>(x: &'a u32) {} }, "cannot be generic"),
        (quote! { pub unsafe fn k() -> u32 { 1 } }, "returns nothing"),
        (quote! { pub async unsafe fn k() {} }, "not `async`"),
        (quote! { pub const unsafe fn k() {} }, "not `const`"),
        (quote! { pub unsafe extern "C" fn k() {} }, "leave the ABI out"),
        (quote! { pub unsafe fn k(self) {} }, "without `self`"),
        (quote! { pub unsafe fn k((a, b): (u32, u32)) {} }, "a plain name"),
        (quote! { pub unsafe fn k(#[cfg(x)] a: u32) {} }, "doc comments only"),
    ];
    for (function, words) in cases {
        let said = refusal(quote! {}, function);
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn wrong_arguments_are_refused_in_words() {
    let cases = [
        (quote! { threads = 0 }, "`threads` is 1 to 1024, not 0"),
        (quote! { threads = 2048 }, "`threads` is 1 to 1024, not 2048"),
        (quote! { cluster = 32 }, "`cluster` is 1 to 16, not 32"),
        (quote! { min_blocks = 2 }, "`min_blocks` needs `threads`"),
        (quote! { threads = 32, threads = 64 }, "`threads` is given twice"),
        (quote! { target = "sm_70" }, "\"sm_90a\" or left out, not \"sm_70\""),
        (quote! { registers = 32 }, "`registers` is unknown here"),
    ];
    for (arguments, words) in cases {
        let said = refusal(arguments, scale());
        assert!(said.contains(words), "{words}: {said}");
    }
}
