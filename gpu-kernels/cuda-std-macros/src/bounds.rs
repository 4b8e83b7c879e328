//! The arguments of `#[kernel(…)]`.

use proc_macro2::Span;
use syn::parse::{Parse, ParseStream};
use syn::{Error, Ident, LitBool, LitInt, LitStr, Token};

const MAX_THREADS: u32 = 1024;
const MAX_CLUSTER: u32 = 16;

/// What the attribute says about launches of the kernel.
#[derive(Debug, Default, PartialEq)]
pub struct Bounds {
    pub threads: Option<u32>,
    pub min_blocks: Option<u32>,
    pub cluster: Option<u32>,
    pub sm_90a: bool,
    pub early: bool,
}

impl Bounds {
    /// Whether the PTX needs directives for this kernel.
    pub fn any(&self) -> bool {
        self.threads.or(self.min_blocks).or(self.cluster).is_some()
    }
}

impl Parse for Bounds {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut bounds = Self::default();
        let mut seen: Vec<Ident> = Vec::new();
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            if seen.contains(&name) {
                return Err(Error::new(name.span(), format!("`{name}` is given twice")));
            }
            input.parse::<Token![=]>()?;
            match name.to_string().as_str() {
                "threads" => bounds.threads = Some(count(input, &name, MAX_THREADS)?),
                "min_blocks" => bounds.min_blocks = Some(count(input, &name, 32)?),
                "cluster" => bounds.cluster = Some(count(input, &name, MAX_CLUSTER)?),
                "early" => bounds.early = input.parse::<LitBool>()?.value,
                "target" => bounds.sm_90a = target(input)?,
                _ => {
                    return Err(Error::new(
                        name.span(),
                        format!(
                            "`{name}` is unknown here: threads, min_blocks, cluster, early or target"
                        ),
                    ));
                }
            }
            seen.push(name);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        if bounds.min_blocks.is_some() && bounds.threads.is_none() {
            return Err(Error::new(Span::call_site(), "`min_blocks` needs `threads`"));
        }
        Ok(bounds)
    }
}

fn count(input: ParseStream<'_>, name: &Ident, max: u32) -> syn::Result<u32> {
    let literal: LitInt = input.parse()?;
    match literal.base10_parse()? {
        value if (1..=max).contains(&value) => Ok(value),
        value => Err(Error::new(literal.span(), format!("`{name}` is 1 to {max}, not {value}"))),
    }
}

fn target(input: ParseStream<'_>) -> syn::Result<bool> {
    let literal: LitStr = input.parse()?;
    match literal.value().as_str() {
        "sm_90a" => Ok(true),
        other => Err(Error::new(
            literal.span(),
            format!("`target` is \"sm_90a\" or left out, not \"{other}\""),
        )),
    }
}
