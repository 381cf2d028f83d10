#include "CMemQSystem.h"
