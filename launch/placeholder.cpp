#include "runtime/core/error.h"
