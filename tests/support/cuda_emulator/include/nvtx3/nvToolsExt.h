// Ranges for profilers: counted, so that a test sees that they are closed.
#pragma once

/// The depth of the range that was opened, as in the library.
int nvtxRangePushA(const char* message);
/// The depth of the range that was closed; negative: there was none.
int nvtxRangePop();
void nvtxMarkA(const char* message);
