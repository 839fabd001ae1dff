//! The fields of a request that take one of a few names; samplers, schedules and generators are named where they are made.

use crate::named_enum::named_enum;

named_enum!(
    /// How a prompt's text is understood.
    PromptSyntax, "prompt syntax", {
        /// AUTOMATIC1111's: brackets are weights, `BREAK` and more than 75 tokens make chunks, `<lora:…>` works.
        Weighted = "weighted",
        /// Every sign is a token, as in diffusers.
        Plain = "plain",
    }
);

named_enum!(
    /// How a picture of another shape is brought to the request's size.
    Resize, "resize", {
        /// Scaled to cover it; what hangs over on both sides is cut off.
        Crop = "crop",
        /// Scaled to lie within it; the rest is filled with the colors of the nearest edge.
        Fit = "fit",
        /// Scaled to its width and height, whatever becomes of the shape.
        Stretch = "stretch",
    }
);

named_enum!(
    /// In which numbers the networks compute.
    Precision, "precision", {
        F32 = "f32",
        F16 = "f16",
        Int8 = "int8",
    }
);
