//! From a kernel function to its PTX entry and its host struct.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::spanned::Spanned;
use syn::{Attribute, Error, FnArg, Ident, ItemFn, Pat, ReturnType, Token, Type, Visibility};

use crate::bounds::Bounds;

struct Parameter {
    docs: Vec<Attribute>,
    mutability: Option<Token![mut]>,
    name: Ident,
    ty: Type,
}

pub fn kernel(arguments: TokenStream, function: TokenStream) -> syn::Result<TokenStream> {
    let bounds: Bounds = syn::parse2(arguments)?;
    let function: ItemFn = syn::parse2(function)?;
    check_signature(&function)?;
    let parameters =
        function.sig.inputs.iter().map(parameter).collect::<syn::Result<Vec<Parameter>>>()?;

    let entry = entry(&bounds, &function, &parameters);
    let host = host(&bounds, &function, &parameters);
    Ok(quote! { #entry #host })
}

fn check_signature(function: &ItemFn) -> syn::Result<()> {
    let signature = &function.sig;
    let refuse = |at: &dyn ToTokens, why: &str| Err(Error::new(at.span(), why));
    if !matches!(function.vis, Visibility::Public(_)) {
        return refuse(&signature.ident, "a kernel is `pub`: the host launches it");
    }
    if signature.unsafety.is_none() {
        return refuse(
            &signature.fn_token,
            "a kernel is `unsafe fn`: that its views are large enough is for the launch to know",
        );
    }
    if !signature.generics.params.is_empty() || signature.generics.where_clause.is_some() {
        return refuse(
            &signature.generics,
            "a kernel has one entry in the PTX and cannot be generic: \
             call a generic function from one kernel for each type",
        );
    }
    if let ReturnType::Type(..) = signature.output {
        return refuse(
            &signature.output,
            "a kernel returns nothing: write results through a `GlobalMut`",
        );
    }
    if let Some(keyword) = &signature.constness {
        return refuse(keyword, "a kernel is not `const`");
    }
    if let Some(keyword) = &signature.asyncness {
        return refuse(keyword, "a kernel is not `async`");
    }
    if let Some(abi) = &signature.abi {
        return refuse(abi, "leave the ABI out: `#[kernel]` chooses it");
    }
    if let Some(variadic) = &signature.variadic {
        return refuse(variadic, "a kernel is not variadic");
    }
    Ok(())
}

fn parameter(argument: &FnArg) -> syn::Result<Parameter> {
    let FnArg::Typed(argument) = argument else {
        return Err(Error::new(argument.span(), "a kernel is a function, without `self`"));
    };
    if let Some(other) = argument.attrs.iter().find(|attribute| !is_doc(attribute)) {
        return Err(Error::new(other.span(), "a kernel's parameter takes doc comments only"));
    }
    match &*argument.pat {
        Pat::Ident(name) if name.by_ref.is_none() && name.subpat.is_none() => Ok(Parameter {
            docs: argument.attrs.clone(),
            mutability: name.mutability,
            name: name.ident.clone(),
            ty: (*argument.ty).clone(),
        }),
        other => Err(Error::new(
            other.span(),
            "a kernel's parameter is a plain name: it becomes a field of the launch",
        )),
    }
}

/// The PTX entry point.
fn entry(bounds: &Bounds, function: &ItemFn, parameters: &[Parameter]) -> TokenStream {
    let arch = if bounds.sm_90a {
        quote! { all(target_arch = "nvptx64", cuda_arch = "sm_90a") }
    } else {
        quote! { target_arch = "nvptx64" }
    };
    let launch_bounds = bounds.any().then(|| {
        let threads = bounds.threads.unwrap_or(0);
        let min_blocks = bounds.min_blocks.unwrap_or(0);
        let cluster = bounds.cluster.unwrap_or(0);
        quote! { ::cuda_std::launch_bounds::<#threads, #min_blocks, #cluster>(); }
    });
    let ItemFn { attrs, sig, block, .. } = function;
    let name = &sig.ident;
    let statements = &block.stmts;
    let declared = parameters.iter().map(|Parameter { mutability, name, ty, .. }| {
        if is_tensor_map(ty) {
            let bytes = format_ident!("_{name}");
            quote! { #bytes: <#ty as ::cuda_std::tensor_map::Parameter>::Bytes }
        } else {
            quote! { #mutability #name: #ty }
        }
    });
    let maps = parameters.iter().enumerate().filter(|(_, parameter)| is_tensor_map(&parameter.ty));
    let tensor_maps = maps.map(|(index, Parameter { mutability, name, ty, .. })| {
        quote! {
            let #mutability #name = <#ty as ::cuda_std::tensor_map::Parameter>::at::<#index>();
        }
    });
    quote! {
        #[cfg(#arch)]
        #(#attrs)*
        #[allow(clippy::missing_safety_doc, clippy::too_many_arguments)]
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn #name(#(#declared),*) {
            #launch_bounds
            #(#tensor_maps)*
            #(#statements)*
        }
    }
}

/// Whether a parameter is one or several tensor maps, which the copy engine wants by address: that
/// of the parameter itself.
fn is_tensor_map(ty: &Type) -> bool {
    let Type::Path(path) = ty else { return false };
    let last = path.path.segments.last();
    last.is_some_and(|last| last.ident == "TensorMap" || last.ident == "TensorMaps")
}

/// The struct that a launch takes, on the host.
fn host(bounds: &Bounds, function: &ItemFn, parameters: &[Parameter]) -> TokenStream {
    let ItemFn { attrs, sig, block, .. } = function;
    let name = &sig.ident;
    let statements = &block.stmts;
    let (on_struct, on_run): (Vec<_>, Vec<_>) = attrs.iter().partition(|a| is_doc(a));
    let conditions: Vec<_> = attrs.iter().filter(|a| a.path().is_ident("cfg")).collect();

    let fields = parameters.iter().map(|Parameter { docs, name, ty, .. }| {
        let default = docs.is_empty().then(|| format!("The kernel's argument `{name}`."));
        let default = default.map(|text| quote! { #[doc = #text] });
        quote! { #default #(#docs)* pub #name: #ty }
    });
    let names: Vec<_> = parameters.iter().map(|parameter| &parameter.name).collect();
    let bindings = parameters.iter().map(|Parameter { mutability, name, .. }| {
        quote! { #mutability #name }
    });
    let declarations = parameters
        .iter()
        .map(|Parameter { name, ty, .. }| format!("{name}: {}", as_written(ty.to_token_stream())));
    let target = if bounds.sm_90a {
        quote! { Sm90a }
    } else {
        quote! { Portable }
    };
    let threads = match bounds.threads {
        Some(threads) => quote! { ::core::option::Option::Some(#threads) },
        None => quote! { ::core::option::Option::None },
    };
    let cluster = bounds.cluster.unwrap_or(1);
    let early = bounds.early;
    let entry_name = name.to_string();

    quote! {
        #[cfg(not(target_arch = "nvptx64"))]
        #(#conditions)*
        #(#on_struct)*
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy)]
        pub struct #name { #(#fields),* }

        #[cfg(not(target_arch = "nvptx64"))]
        #(#conditions)*
        // SAFETY: the fields are the parameters of the PTX entry above, in its order.
        #[allow(clippy::undocumented_unsafe_blocks)]
        unsafe impl ::cuda_std::Kernel for #name {
            const NAME: &'static str = #entry_name;
            const PARAMS: &'static [&'static str] = &[#(#declarations),*];
            const TARGET: ::cuda_std::PtxTarget = ::cuda_std::PtxTarget::#target;
            const THREADS: ::core::option::Option<u32> = #threads;
            const CLUSTER: u32 = #cluster;
            const EARLY: bool = #early;

            #(#on_run)*
            unsafe fn run(self) {
                let Self { #(#bindings),* } = self;
                #(#statements)*
            }

            fn params(&self) -> ::std::vec::Vec<*const ::core::ffi::c_void> {
                fn place<T: ::cuda_std::KernelArg>(argument: &T) -> *const ::core::ffi::c_void {
                    ::core::ptr::from_ref(argument).cast()
                }
                ::std::vec![#(place(&self.#names)),*]
            }
        }
    }
}

fn is_doc(attribute: &Attribute) -> bool {
    attribute.path().is_ident("doc")
}

/// A type as one writes it: `Global<[u32; 4]>`, where tokens print as `Global < [u32 ; 4] >`.
fn as_written(tokens: TokenStream) -> String {
    let mut text = String::new();
    for token in tokens {
        let word = matches!(token, TokenTree::Ident(_) | TokenTree::Literal(_));
        if word && text.ends_with(|last: char| last.is_alphanumeric() || last == '_') {
            text.push(' ');
        }
        match token {
            TokenTree::Group(group) => {
                let inner = as_written(group.stream());
                text += &match group.delimiter() {
                    Delimiter::Parenthesis => format!("({inner})"),
                    Delimiter::Brace => format!("{{{inner}}}"),
                    Delimiter::Bracket => format!("[{inner}]"),
                    Delimiter::None => inner,
                };
            }
            TokenTree::Punct(mark) if matches!(mark.as_char(), ',' | ';') => {
                text.push(mark.as_char());
                text.push(' ');
            }
            other => text += &other.to_string(),
        }
    }
    text
}
