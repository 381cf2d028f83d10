#include "CMemQChecksum.h"
